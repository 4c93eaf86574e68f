"""Networks as ONNX files, for programs without PyTorch.

The graph is traced from the reference operators (plain PyTorch), with the number of pictures, their
height and their width left open, and holds the padding, the weather prior and the clamp to [0, 1].
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipweather_fast
from clipweather_fast.models import RestorationNetwork
from clipweather_fast.ops import use_backend
from clipweather_fast.restore.aside import written_aside

__all__ = ["CHECKED_SIZES", "ExportError", "OnnxCheck", "export_onnx"]

#: (N, H, W) of the pictures on which the file is compared with PyTorch: one padded, one not.
CHECKED_SIZES = ((1, 150, 215), (2, 64, 128))
#: What is traced. Padded to 16 these sides are 9 and 13 patches, which no stage halves evenly:
#: every crop in a decoder is seen to be needed, and is in the graph.
TRACED_SIZE = (2, 139, 203)
#: Largest difference that is allowed there, for values in [0, 1].
TOLERANCE = 1e-4
#: The oldest operator set with everything the networks need.
OPSET = 18


class ExportError(RuntimeError):
    """The exported network does not compute what the network computes."""


@dataclass(frozen=True)
class OnnxCheck:
    """A comparison of ONNX Runtime with PyTorch: (N, H, W) and the largest difference."""

    size: tuple[int, int, int]
    difference: float


def export_onnx(
    network: RestorationNetwork,
    path: str | os.PathLike[str],
    *,
    sizes: Sequence[tuple[int, int, int]] = CHECKED_SIZES,
    prior_input: bool = False,
) -> list[OnnxCheck]:
    """Writes a network as an ONNX file that was compared with PyTorch before it appears.

    The file has the input ``image`` (batch, 3, height, width), RGB in [0, 1], and the output
    ``restored`` of the same shape, in [0, 1], both float32.

    Args:
        network: on the CPU in float32; a frozen prior encoder is built and goes into the file.
        path: the file to write; its folder must exist.
        sizes: (N, H, W) to compare at, two at least.
        prior_input: leave the prior encoder out; the file gets a second input ``prior`` (batch or
            1, prior_dim). For tiles and videos that share a prior.

    Returns:
        The comparisons.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
        ExportError: the file would differ from PyTorch by more than ``TOLERANCE``.
        ValueError: fewer than two sizes, or ``prior_input`` for a network without a prior.
    """
    _require_packages()
    if len(sizes) < 2:
        raise ValueError(f"export_onnx: sizes must be two or more, got {len(sizes)}")
    whole = _Whole(network, prior_input).eval()
    torch.manual_seed(0)
    samples = [whole.sample(*size) for size in sizes]
    if prior_input:
        samples += [whole.sample(n, h, w, priors=1) for n, h, w in sizes if n > 1]
    with torch.inference_mode(False), torch.no_grad(), use_backend("reference"):
        model = _traced(whole, whole.sample(*TRACED_SIZE))
        expected = [whole(*sample) for sample in samples]
    model.metadata_props.add(key="network", value=type(network).__name__)
    model.metadata_props.add(key="config", value=json.dumps(network.config.to_dict()))
    model.producer_name, model.producer_version = "clipweather_fast", clipweather_fast.__version__
    content = model.SerializeToString()
    checks = _compared(content, samples, expected)
    with written_aside(Path(path)) as file:
        file.write(content)
    return checks


class _Whole(nn.Module):
    """A network with its padding written so that no size is fixed while it is traced."""

    def __init__(self, network: RestorationNetwork, prior_input: bool) -> None:
        super().__init__()
        self.network = network
        self.prior_dim: int | None = None
        if prior_input:
            if not getattr(network.config, "uses_prior", False):
                raise ValueError(f"export_onnx: {type(network).__name__} uses no prior")
            self.prior_dim = int(network.config.prior_dim)  # type: ignore[attr-defined]
            return
        # Building a frozen encoder reads files: not a thing to do while tracing.
        network.encode_prior(torch.zeros(1, 3, 64, 64))
        # What is no submodule of the network would not be traced as weights.
        self.frozen = nn.ModuleList(getattr(network, "_frozen", []))

    def sample(self, n: int, height: int, width: int, priors: int = 0) -> tuple[Tensor, ...]:
        image = torch.rand(n, 3, height, width)
        if self.prior_dim is None:
            return (image,)
        return image, torch.randn(priors or n, self.prior_dim)

    def forward(self, image: Tensor, prior: Tensor | None = None) -> Tensor:
        network = self.network
        if prior is None:
            prior = network.encode_prior(image)
        elif self.prior_dim is not None:
            # One for all of them or one for each: an expansion would settle which.
            which = torch.arange(image.shape[0], device=image.device)
            prior = prior.index_select(0, which.clamp(max=prior.shape[0] - 1))
        height, width = image.shape[2:]
        picture = image
        for axis in (2, 3):
            picture = _padded(picture, axis, network.size_multiple, network.minimum_size)
        restored = network.restored(picture * 2 - 1, prior, None)
        return restored[:, :, :height, :width].clamp(0, 1)


def _padded(image: Tensor, axis: int, multiple: int, minimum: int) -> Tensor:
    """As :func:`clipweather_fast.models._padding.padded`, in operations on tensors alone."""
    length = image.shape[axis]
    target = (torch.sym_max(length, minimum) + multiple - 1) // multiple * multiple
    position = torch.arange(target, device=image.device)
    mirrored = 2 * (length - 1) - position
    # Below zero at the end: the side is too short to be mirrored, and its edge is repeated.
    beyond = torch.where(mirrored[-1] >= 0, mirrored, torch.full_like(position, 0) + (length - 1))
    return image.index_select(axis, torch.where(position < length, position, beyond))


def _traced(whole: _Whole, sample: tuple[Tensor, ...]) -> Any:
    """The ONNX model (a protobuf message)."""
    names = ["image", "prior"][: len(sample)]
    dynamic: dict[str, Any] = {"image": {0: "batch", 2: "height", 3: "width"}}
    if len(sample) == 2:
        dynamic["prior"] = {0: "priors"}
    # What the exporter prints and warns of is about its own steps; the result is compared.
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            whole,
            sample,
            input_names=names,
            output_names=["restored"],
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    for dimension, name in zip(
        model.graph.output[0].type.tensor_type.shape.dim,
        ("batch", None, "height", "width"),
        strict=True,
    ):
        if name is not None:  # the tracer writes formulas that come to the same
            dimension.dim_param = name
    return model


def _compared(
    content: bytes, samples: Sequence[tuple[Tensor, ...]], expected: Sequence[Tensor]
) -> list[OnnxCheck]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]
    checks = []
    for sample, y in zip(samples, expected, strict=True):
        feed = {name: tensor.numpy() for name, tensor in zip(names, sample, strict=True)}
        (found,) = session.run(None, feed)
        size = (y.shape[0], y.shape[2], y.shape[3])
        if found.shape != y.shape:
            raise ExportError(f"at {size} the file gives {found.shape}, not {tuple(y.shape)}")
        check = OnnxCheck(size, float((torch.from_numpy(found) - y).abs().max()))
        if not check.difference <= TOLERANCE:
            raise ExportError(
                f"at {size} the file differs from PyTorch by {check.difference:.3g}, more than "
                f"{TOLERANCE:g}; it was not written"
            )
        checks.append(check)
    return checks


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX files need {error.name}: pip install 'clipweather_fast[onnx]'"
        ) from error
