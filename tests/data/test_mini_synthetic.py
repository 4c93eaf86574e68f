"""The scripts that gather photographs: their own steps, on small stand-ins for the packages."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

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
    used = {
        (package.package, f"{package.folder}/{name}")
        for package in train.packages()
        for name in package.photographs
    }
    words = {part.lower() for _, name in used for part in Path(name).with_suffix("").parts}
    assert len(held_out) == 7
    assert len(used) == 316
    assert not held_out & words
    assert not {"scikit-image", "scikit-learn"} & {package for package, _ in used}


def test_the_list_of_photographs_is_in_order() -> None:
    packages = loaded("train_photographs").packages()
    names = [(package.registry, package.package) for package in packages]
    assert names == sorted(set(names))
    assert {registry for registry, _ in names} == {"debian", "npm", "pypi"}
    for package in packages:
        assert package.version[0].isdigit()
        assert package.licence
        assert list(package.photographs) == sorted(set(package.photographs))


def test_no_two_photographs_have_tiles_of_the_same_name() -> None:
    packages = loaded("train_photographs").packages()
    titles = [package.title(name) for package in packages for name in package.photographs]
    assert len(set(titles)) == len(titles)
    assert not [title for title in titles if "/" in title]


def packed(registry: str, name: str = "@some/web-kit") -> Any:
    return loaded("train_photographs").Package(
        registry, name, "1.2.0", "MIT", "a/b", ("c.png", "d/2560x1600.png", "e_by_f.png")
    )


def test_what_a_registry_calls_a_package_and_its_photographs() -> None:
    npm, pypi, debian = packed("npm"), packed("pypi", "web-kit"), packed("debian", "web-kit")
    assert npm.archive == "some-web-kit-1.2.0.tgz"
    assert npm.command == ["npm", "pack", "@some/web-kit@1.2.0"]
    assert npm.title("d/c.png") == "some-web-kit-c"
    assert fnmatch("web_kit-1.2.0-py3-none-any.whl", pypi.archive)
    assert not fnmatch("web_kit-1.2.01-py3-none-any.whl", pypi.archive)
    assert pypi.command[-1] == "web-kit==1.2.0"
    assert fnmatch("web-kit_1.3.0-1_all.deb", debian.archive)
    assert debian.command == ["apt-get", "download", "web-kit"]
    assert [debian.title(name) for name in debian.photographs] == ["c", "d", "e"]


@pytest.mark.parametrize("registry", ["npm", "pypi"])
def test_a_photograph_is_found_in_what_was_fetched(registry: str, tmp_path: Path) -> None:
    package = packed(registry)
    file = tmp_path / ("a.whl" if registry == "pypi" else "a.tgz")
    png = io.BytesIO()
    Image.new("RGBA", (6, 4), (10, 20, 30, 128)).save(png, "PNG")
    paths = [package.path(name) for name in package.photographs]
    if registry == "pypi":
        with zipfile.ZipFile(file, "w") as wheel:
            for path in paths:
                wheel.writestr(path, png.getvalue())
    else:
        with tarfile.open(file, "w:gz") as archive:
            for path in paths:
                member = tarfile.TarInfo(path)
                member.size = len(png.getvalue())
                archive.addfile(member, io.BytesIO(png.getvalue()))
    pictures = list(package.pictures(file))
    assert [title for title, _ in pictures] == [package.title(name) for name in package.photographs]
    assert {(picture.mode, picture.size) for _, picture in pictures} == {("RGB", (6, 4))}


def test_a_folder_in_the_place_of_a_photograph_is_reported(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        folder = tarfile.TarInfo("package/b.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with pytest.raises(FileNotFoundError, match=r"b\.png is not a file"):
        list(loaded("train_photographs").contents(tmp_path / "a.tgz", ["package/b.png"]))


def test_what_is_in_the_cache_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, package = loaded("train_photographs"), packed("npm")
    file = tmp_path / package.archive

    def run(command: list[str], *, check: bool, cwd: Path) -> None:
        assert (command, check) == (package.command, True)
        assert Path(cwd).parent == tmp_path
        assert not file.exists()
        (Path(cwd) / package.archive).touch()

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.fetched(package, tmp_path) == file
    assert script.fetched(package, tmp_path) == file


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
