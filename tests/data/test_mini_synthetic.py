"""The scripts that gather photographs: their own steps, on small stand-ins for the packages."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "examples" / "mini_synthetic"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planes_are_green_blue_and_red() -> None:
    planes = np.stack([np.full((2, 3), v, "<u2") for v in (65535, 257 * 10, 257 * 200)])
    picture = loaded("train_photographs").from_planes(planes.tobytes(), (3, 2))
    assert picture.size == (3, 2)
    assert picture.getpixel((0, 0)) == (200, 255, 10)


def test_tiles_cover_every_version_of_a_photograph() -> None:
    script = loaded("train_photographs")
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1600, 3), np.uint8)
    tiles = dict(script.tiles(Image.fromarray(noise), 384))
    versions = {name.split("_")[0] for name in tiles}
    assert versions == {"1100", "720", "480"}
    assert {tile.size for tile in tiles.values()} == {(384, 384)}
    assert len([name for name in tiles if name.startswith("480")]) == 2 * 2
    small = dict(script.tiles(Image.fromarray(noise[:200, :300]), 384))
    assert [tile.size for tile in small.values()] == [(300, 200)]


@pytest.mark.parametrize("length", [1, 383, 384, 385, 1000])
def test_tiles_reach_from_border_to_border(length: int) -> None:
    starts = loaded("train_photographs")._starts(length, 384)
    assert starts[0] == 0
    assert starts[-1] + 384 >= length
    assert all(later - start <= 384 for start, later in pairwise(starts))


def test_tiles_that_show_nothing_are_left_out_of_all_but_the_smallest_version() -> None:
    tiles = dict(loaded("train_photographs").tiles(Image.new("RGB", (1500, 1300)), 384))
    assert tiles
    assert all(name.startswith("480") for name in tiles)


def test_the_photographs_of_training_and_of_judging_are_others() -> None:
    train, judge = loaded("train_photographs"), loaded("held_out")
    held_out = {Path(name).stem.lower() for names in judge.HELD_OUT.values() for name in names}
    used = {(train.WHEEL, name) for name in train.RAW}
    for package, names in {**train.PHOTOGRAPHS, **train.WEB_PHOTOGRAPHS}.items():
        used |= {(package, name) for name in names}
    words = {part.lower() for _, name in used for part in Path(name).with_suffix("").parts}
    assert len(held_out) == 7
    assert len(used) == 117
    assert not held_out & words


def test_a_picture_of_a_web_design_is_found_in_what_npm_fetches(tmp_path: Path) -> None:
    script = loaded("train_photographs")
    path = tmp_path / script.web_archive("some-kit@1.2.0")
    assert path.name == "some-kit-1.2.0.tgz"
    content = io.BytesIO()
    Image.new("RGBA", (6, 4), (10, 20, 30, 128)).save(content, "PNG")
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("package/a.png")
        member.size = content.tell()
        content.seek(0)
        archive.addfile(member, content)
        folder = tarfile.TarInfo("package/b.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with tarfile.open(path) as archive:
        picture = script.picture_in(archive, "package/a.png")
        assert (picture.mode, picture.size) == ("RGB", (6, 4))
        with pytest.raises(FileNotFoundError, match=r"b\.png is not a file"):
            script.picture_in(archive, "package/b.png")


def test_the_held_out_photographs_are_there_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    loaded("held_out").write_photographs(tmp_path)
    sizes = {}
    for path in tmp_path.iterdir():
        with Image.open(path) as photograph:
            sizes[path.stem] = photograph.size
    assert sizes == {
        "astronaut": (512, 512),
        "chelsea": (451, 300),
        "china": (640, 427),
        "coffee": (600, 400),
        "flower": (640, 427),
        "motorcycle_left": (741, 500),
        "rocket": (640, 427),
    }


@pytest.mark.parametrize("name", ["held_out", "train_photographs"])
def test_the_scripts_say_how_to_call_them(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as ended:
        loaded(name).main()
    assert f"{name}.py" in f"{ended.value} {capsys.readouterr().err}"
