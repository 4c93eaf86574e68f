"""An ONNX file computes what the network computes, at any size, or is not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from clipweather_fast import export
from clipweather_fast.models import RestorationNetwork, create_model
from command import here, words

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


def small_network() -> RestorationNetwork:
    """As few blocks as a network may have, with a prior that matters."""
    torch.manual_seed(0)
    network = create_model(
        "clipweather_tiny",
        dims=(8, 16, 16, 32),
        depths=(1, 1, 1, 1),
        intra_patch=False,
        prior_encoder="convolutional:32",
        prior_dim=32,
        prior_width=32,
        prior_blocks=1,
        gamma_init=1.0,
        residual_output=False,  # untrained, it would give back what it gets
    ).eval()
    for module in network.modules():  # from pictures alike to priors unlike
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RestorationNetwork, Path]:
    """A small network and its file, written by the command."""
    folder = tmp_path_factory.mktemp("export")
    network = small_network()
    network.save_pretrained(folder / "checkpoint")
    done = here("export", folder / "checkpoint", "-o", folder / "model.onnx")
    assert done.exit_code == 0, done.stderr
    assert "1 x 3 x 150 x 215: differs from PyTorch by " in done.stdout
    assert "2 x 3 x 64 x 128: differs from PyTorch by " in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.onnx"]
    return network, folder / "model.onnx"


@pytest.mark.parametrize(
    "size", [(1, 64, 64), (3, 100, 37), (1, 1, 1), (2, 224, 224), (1, 65, 300)]
)
def test_the_file_computes_what_the_network_does(
    size: tuple[int, int, int], exported: tuple[RestorationNetwork, Path]
) -> None:
    network, path = exported
    n, height, width = size
    image = torch.rand(n, 3, height, width)
    with torch.inference_mode():
        expected = network(image).clamp(0, 1)
        unlike = network(image, torch.zeros(1, 32)).clamp(0, 1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    difference = (torch.from_numpy(found) - expected).abs().max()
    assert difference < export.TOLERANCE
    if height > 1:  # one pixel may be black with either
        assert (unlike - expected).abs().max() > 10 * difference, "the prior does not matter"


def test_a_file_that_takes_the_prior_computes_with_it(
    exported: tuple[RestorationNetwork, Path], tmp_path: Path
) -> None:
    network, path = exported
    result = here("export", path.parent / "checkpoint", "-o", tmp_path / "m.onnx", "--prior-input")
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("image", ["batch", 3, "height", "width"]),
        ("prior", ["priors", 32]),
    ]
    image = torch.rand(2, 3, 70, 90)
    own = network.encode_prior(image).detach()
    for prior in (own, own.flip(0), torch.zeros(2, 32), own[:1]):
        (found,) = session.run(None, {"image": image.numpy(), "prior": prior.numpy()})
        with torch.inference_mode():
            expected = network(image, prior).clamp(0, 1)
        assert (torch.from_numpy(found) - expected).abs().max() < export.TOLERANCE
    with torch.inference_mode():
        change = (network(image, own) - network(image, torch.zeros(2, 32))).abs().max()
    assert change > 10 * export.TOLERANCE, "the prior does not matter"


def test_the_file_says_what_it_is(exported: tuple[RestorationNetwork, Path]) -> None:
    _, path = exported
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    wanted = ["batch", 3, "height", "width"]
    assert shapes == {"image": wanted, "restored": wanted}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["network"] == "ClipWeather"
    assert '"dims": [8, 16, 16, 32]' in about["config"]


def test_a_file_that_differs_is_not_accepted(exported: tuple[RestorationNetwork, Path]) -> None:
    network, path = exported
    image = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        expected = network(image).clamp(0, 1)
    content = path.read_bytes()
    (check,) = export._compared(content, [(image,)], [expected])
    assert dataclasses.astuple(check)[0] == (1, 40, 50)
    with pytest.raises(export.ExportError, match=r"differs from PyTorch by 0\.001.*not written"):
        export._compared(content, [(image,)], [expected + 0.001])
    with pytest.raises(export.ExportError, match="differs from PyTorch by nan"):
        export._compared(content, [(image,)], [expected * float("nan")])


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("none/", "-o", "a.onnx"), 2, "'--model' / '-n': there is no file or folder none/"),
        (("transweather", "-o", "a.onnx"), 2, "no weights come with"),
        (("transweather", "-o", "a.pth"), 2, "'--output' / '-o': a.pth must end in .onnx"),
        (("transweather", "-o", "no/a.onnx"), 2, "there is no folder no"),
    ],
)
def test_what_cannot_be_is_named(arguments: tuple[str, ...], code: int, reason: str) -> None:
    result = here("export", *arguments)
    assert result.exit_code == code
    assert reason in words(result.output)


def test_wrong_calls(tmp_path: Path) -> None:
    network = create_model("transweather", dims=(8, 16, 16, 32), depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="sizes must be two or more, got 1"):
        export.export_onnx(network, tmp_path / "a.onnx", sizes=[(1, 8, 8)])
    missing = create_model(
        "clipweather_tiny", prior_encoder="clip", prior_weights="none", prior_dim=7
    )
    assert export._Whole(missing, prior_input=True).prior_dim == 7  # needs no encoder
    with pytest.raises(ValueError, match="TransWeather uses no prior"):
        export.export_onnx(network, tmp_path / "a.onnx", prior_input=True)
    assert list(tmp_path.iterdir()) == []
