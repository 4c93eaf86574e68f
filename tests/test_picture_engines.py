"""Other projects' engines in the whole networks' benchmark: processes of their own, right values,
and an end with a reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # at the end: the package under test is the one installed

from benchmarks.models import picture_engines  # noqa: E402
from benchmarks.models import picture_sides as sides  # noqa: E402
from benchmarks.models.picture_contest import PictureSize, pictures  # noqa: E402
from benchmarks.models.picture_engines import ENGINES, Engine, EngineUnavailable  # noqa: E402

SIZE = PictureSize("picture", "clipweather_tiny", 1, 48, 64)
SHAPE = (1, 3, SIZE.h, SIZE.w)
INSTALLED = [name for name in ENGINES if importlib.util.find_spec(name)]
some = pytest.mark.skipif(not INSTALLED, reason=f"none of {', '.join(ENGINES)} is installed")


@pytest.fixture(scope="module")
def exported() -> bytes:
    """A network of one layer with the names that ours have: the mean of 3 x 3 pixels."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    make, axes, real = onnx.helper, ("batch", 3, "height", "width"), onnx.TensorProto.FLOAT
    kernel = torch.eye(3)[:, :, None, None].expand(3, 3, 3, 3).contiguous() / 9
    graph = make.make_graph(
        [make.make_node("Conv", ["image", "kernel"], ["restored"], pads=[1, 1, 1, 1])],
        "mean",
        [make.make_tensor_value_info("image", real, axes)],
        [make.make_tensor_value_info("restored", real, axes)],
        [onnx.numpy_helper.from_array(kernel.numpy(), "kernel")],
    )
    opset = make.make_opsetid("", 18)
    content: bytes = make.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return content


@pytest.mark.parametrize("name", INSTALLED)
def test_an_engine_restores_whatever_it_is_shown(name: str, exported: bytes) -> None:
    engine = Engine(name, exported, SHAPE, "float32", 1)
    image = pictures(SIZE)
    for shown in (image, image.flip(3), image):
        mean = torch.nn.functional.avg_pool2d(shown, 3, stride=1, padding=1)
        torch.testing.assert_close(engine(shown), mean)


@pytest.mark.parametrize("name", INSTALLED)
def test_an_engine_works_elsewhere_and_ends_with_its_call(name: str, exported: bytes) -> None:
    engine = Engine(name, exported, SHAPE, "float32", 1)
    engine(pictures(SIZE))
    process = engine.process
    assert process.is_alive()
    assert process.pid != os.getpid()
    with open(f"/proc/{process.pid}/maps") as file:
        loaded = file.read()
    assert f"/{name}/" in loaded
    assert "libtorch" not in loaded
    del engine
    assert not process.is_alive()


@pytest.mark.parametrize("name", INSTALLED)
def test_a_lost_process_is_an_error_and_no_hang(name: str, exported: bytes) -> None:
    engine = Engine(name, exported, SHAPE, "float32", 1)
    engine.process.kill()
    engine.process.join()
    with pytest.raises(EngineUnavailable, match="its process ended"):
        engine(pictures(SIZE))


@pytest.mark.parametrize("name", INSTALLED)
def test_refusals_arrive_with_their_reason(name: str, exported: bytes) -> None:
    with pytest.raises(EngineUnavailable, match=r"computes in float32|has no float64"):
        Engine(name, exported, SHAPE, "float64", 1)
    with pytest.raises(EngineUnavailable, match=r"(?i)model|proto|onnx|parse"):
        Engine(name, b"no network", SHAPE, "float32", 1)
    with pytest.raises(sides.SideUnavailable, match="CPUs only"):
        sides.build(name, SIZE, torch.float32, "cuda")


@pytest.mark.parametrize("free", [10, 1 << 40], ids=["full", "has room"])
def test_pictures_are_in_memory_where_it_has_room(
    free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(picture_engines, "_MEMORY", tmp_path)
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(picture_engines.shutil, "disk_usage", lambda path: usage)
    assert picture_engines._place(1000, SHAPE) == (tmp_path if free > 10 else None)
    monkeypatch.setattr(picture_engines, "_MEMORY", tmp_path / "missing")
    assert picture_engines._place(1000, SHAPE) is None


@some
def test_what_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sides, "_exported", lambda *_: b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sides.SideUnavailable, match=r"pip install clipweather_fast\[bench\]"):
        sides.build(INSTALLED[0], SIZE, torch.float32, "cpu")


def test_the_module_of_an_engine_s_process_needs_no_pytorch() -> None:
    program = "import sys, benchmarks.models.picture_engines; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
