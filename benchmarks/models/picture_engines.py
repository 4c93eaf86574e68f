"""Engines of other projects that run the exported network, each in a process of its own.

As their users have them, and because a heap that two libraries share serves neither: one that holds
on to large pieces of it makes the other's next pass take new pages, at tens of thousands of faults
a picture. The process has the same allocator settings as this one, no PyTorch, and reads and writes
the pictures where this process does, so that nothing is copied. What calling costs besides is a
message each way, some hundredths of a millisecond.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import multiprocessing
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import allocator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ENGINES", "Engine", "EngineUnavailable", "Order", "installed"]

#: Where files are memory, if the system has such a place.
_MEMORY = Path("/dev/shm")
#: Bytes of its heap that are taken at once; the others are there after its first call.
_HEAP = 1 << 26
#: Seconds that a process may take to end by itself.
_PATIENCE = 5.0

Pictures = np.ndarray[Any, np.dtype[np.float32]]
Run = Callable[[], object]


class EngineUnavailable(RuntimeError):
    """An engine that cannot take part; the message says why."""


def installed(engine: str) -> bool:
    """Whether an engine of :data:`ENGINES` is there."""
    return importlib.util.find_spec(engine) is not None


@dataclass(frozen=True)
class Order:
    """What an engine's process is to do.

    Attributes:
        engine: a name of :data:`ENGINES`.
        folder: has ``network.onnx`` and the pictures, ``image`` and ``restored``.
        shape: of the pictures, (N, 3, H, W).
        dtype: "float32" or "bfloat16", in which the engine computes.
        threads: that it may use.
        tuned: whether its allocator is to keep what is freed, as that of the other process.
    """

    engine: str
    folder: Path
    shape: tuple[int, int, int, int]
    dtype: str
    threads: int
    tuned: bool

    def pictures(self, name: str) -> Pictures:
        """The pictures that both processes see."""
        path = self.folder / name
        mode: Any = "r+" if path.exists() else "w+"
        return np.memmap(path, np.float32, mode, shape=self.shape)


class Engine:
    """An engine at work on pictures of one shape: (N, 3, H, W) float32 in, the same out.

    The result is valid until the next call.

    Args:
        engine: a name of :data:`ENGINES`.
        content: the exported network.
        shape: of the pictures.
        dtype: "float32" or "bfloat16".
        threads: that it may use.

    Raises:
        EngineUnavailable: it is not installed, or refused the network or the precision.
    """

    def __init__(
        self,
        engine: str,
        content: bytes,
        shape: tuple[int, int, int, int],
        dtype: str,
        threads: int,
    ) -> None:
        if not installed(engine):
            raise EngineUnavailable("it is not installed: pip install clipweather_fast[bench]")
        context = multiprocessing.get_context("spawn")
        # Both processes keep what they have opened when the folder goes.
        with tempfile.TemporaryDirectory(dir=_place(len(content), shape)) as folder:
            order = Order(engine, Path(folder), shape, dtype, threads, allocator.tuned())
            (order.folder / "network.onnx").write_bytes(content)
            self._image, self._restored = order.pictures("image"), order.pictures("restored")
            self._connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, order), daemon=True)
            self.process.start()
            theirs.close()
            weakref.finalize(self, _end, self.process, self._connection)
            self._answered()
        self._shown: Tensor | None = None

    def __call__(self, image: Tensor) -> Tensor:
        import torch

        # The benchmark shows the same pictures again and again; copying them is not the engine's.
        if image is not self._shown:
            self._image[:] = image.numpy()
            self._shown = image
        # Of a process that ended, what it had to say is there to be received.
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(True)
        self._answered()
        return torch.from_numpy(np.asarray(self._restored))

    def _answered(self) -> None:
        try:
            refusal = self._connection.recv()
        except (EOFError, ConnectionError):
            raise EngineUnavailable("its process ended") from None
        if refusal is not None:
            raise EngineUnavailable(refusal)


def _end(process: Any, connection: Connection) -> None:
    connection.close()
    process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()


def _place(content: int, shape: tuple[int, int, int, int]) -> Path | None:
    """Memory, where it has room: writing to a file there that has none ends the process."""
    needed = content + 2 * math.prod(shape) * np.dtype(np.float32).itemsize
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * needed:
        return _MEMORY
    return None


# ---- in the process of the engine ---------------------------------------------------------------


def _serve(connection: Connection, order: Order) -> None:
    """Builds the engine and runs it whenever asked, until the other end closes."""
    if order.tuned:
        allocator.tune(_HEAP)
    try:
        run = ENGINES[order.engine](order)
        connection.send(None)
        while connection.recv():
            run()
            connection.send(None)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as reason:  # whatever it is, the other process says it
        connection.send(" ".join(str(reason).split()) or type(reason).__name__)


def _onnxruntime(order: Order) -> Run:
    import onnxruntime

    if order.dtype != "float32":
        raise EngineUnavailable("computes in float32 on CPUs")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = order.threads, 1
    n, _, h, w = order.shape
    for axis, length in {"batch": n, "height": h, "width": w}.items():
        options.add_free_dimension_override_by_name(axis, length)
    session = onnxruntime.InferenceSession(
        order.folder / "network.onnx", options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    image, restored = order.pictures("image"), order.pictures("restored")
    for bind, name, pictures in (
        (binding.bind_input, "image", image),
        (binding.bind_output, session.get_outputs()[0].name, restored),
    ):
        bind(name, "cpu", 0, np.float32, order.shape, pictures.ctypes.data)
    # It plans its memory by the first run and takes it in the second, the slowest of all.
    for _ in range(2):
        session.run_with_iobinding(binding)
    # The pictures live as long as the call that works on their addresses.
    return lambda: (session.run_with_iobinding(binding), image, restored)


def _openvino(order: Order) -> Run:
    import openvino

    core = openvino.Core()
    short = {"float32": "f32", "bfloat16": "bf16"}.get(order.dtype)
    if short is None or (
        short == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    ):
        raise EngineUnavailable(f"has no {order.dtype} on this processor")
    model = core.read_model(order.folder / "network.onnx")
    model.reshape({"image": list(order.shape)})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": short,
            "INFERENCE_NUM_THREADS": order.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()
    image, restored = order.pictures("image"), order.pictures("restored")
    request.set_input_tensor(openvino.Tensor(np.asarray(image), shared_memory=True))
    request.set_output_tensor(openvino.Tensor(np.asarray(restored), shared_memory=True))
    return lambda: (request.infer(share_inputs=True, share_outputs=True), image, restored)


#: By the name of their package.
ENGINES: dict[str, Callable[[Order], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
