"""The processes and the device of a run, on accelerate: one process or many, whole or sharded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast.training.sections import RunSection

__all__ = ["Processes"]


class Processes:
    """Where a run computes. Started by ``torchrun`` or ``accelerate launch`` there are several.

    Attributes:
        device: of this process.
        rank, world: its number, and how many there are.
        main: whether it is the one that writes.
    """

    def __init__(self, section: RunSection) -> None:
        from accelerate import Accelerator
        from accelerate.utils import parse_flag_from_env

        self.section = section
        if section.threads is not None:
            torch.set_num_threads(section.threads)
        if section.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("configuration: run.device is cuda, but PyTorch sees no GPU")
        precision = {"float32": "no", "bfloat16": "bf16"}[section.precision]
        self.accelerator = Accelerator(
            cpu=section.device == "cpu" or not torch.cuda.is_available(), mixed_precision=precision
        )
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        # accelerate knows FSDP on GPUs only, so the sharding itself is PyTorch's.
        asked = parse_flag_from_env("ACCELERATE_USE_FSDP")
        self.sharded = self.world > 1 and (section.sharding == "fsdp" or asked)
        self._numbers: list[nn.Parameter] = []

    # ---- the student -----------------------------------------------------------------------

    def wrapped(self, student: nn.Module) -> nn.Module:
        """The student on the device, under autocast if asked for, its gradients averaged."""
        if self.sharded:
            return self._sharded(student.to(self.device))
        return cast(nn.Module, self.accelerator.prepare_model(student))

    def bare(self, student: nn.Module) -> nn.Module:
        """The student as the task made it."""
        if isinstance(student, nn.parallel.DistributedDataParallel):
            return cast(nn.Module, student.module)
        return student

    def _sharded(self, student: nn.Module) -> nn.Module:
        """FSDP: every element of a module list is gathered on its own, the rest at once."""
        from accelerate.utils import convert_outputs_to_fp32
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for parameter in student.parameters():
            # Convolutions' weights lie channels-last, which FSDP cannot cut.
            parameter.data = parameter.data.contiguous()
        # Nor single numbers: every process keeps them, and their gradients are averaged.
        self._numbers = [p for p in student.parameters() if p.dim() == 0]
        mesh = init_device_mesh(self.device.type, (self.world,))
        shard = partial(fully_shard, mesh=mesh, ignored_params=set(self._numbers))
        for module in list(student.modules()):
            if isinstance(module, nn.ModuleList):
                for unit in module:
                    shard(unit)
        shard(student)
        if self.section.precision == "bfloat16":
            # As accelerate does it for a student that is not sharded.
            low = torch.autocast(self.device.type, torch.bfloat16)
            student.forward = convert_outputs_to_fp32(low(student.forward))
        return student

    def settle(self, student: nn.Module) -> None:
        """After forward passes without backward ones: sharded parameters are given up again."""
        if self.sharded:
            for module in student.modules():
                reshard = getattr(module, "reshard", None)
                if reshard is not None:
                    reshard()

    @contextmanager
    def synchronised(self, student: nn.Module, last: bool) -> Iterator[None]:
        """Around a micro-batch: gradients are averaged over the processes after the last one."""
        if self.sharded:
            cast(Any, student).set_requires_gradient_sync(last)
            yield
            for number in self._numbers if last else ():
                if number.grad is not None:
                    number.grad = self.accelerator.reduce(number.grad, "mean")
            return
        if isinstance(student, nn.parallel.DistributedDataParallel) and not last:
            with student.no_sync():
                yield
            return
        yield

    def groups(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The parameters as an optimizer takes them: those that are cut apart from the others."""
        cut = [p for p in parameters if hasattr(p, "to_local")]
        uncut = [p for p in parameters if not hasattr(p, "to_local")]
        return [{"params": group} for group in (cut, uncut) if group]

    def clipped(self, parameters: Sequence[Tensor], largest: float | None) -> float:
        """The norm of the whole gradient, which is scaled down to ``largest`` if it is above."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([local(g) for g in gradients]))
        shared = torch.tensor([not hasattr(g, "to_local") for g in gradients], device=self.device)
        squares = norms.double().square()
        cut = squares.masked_fill(shared, 0).sum()
        if self.sharded:
            cut = cast(Tensor, self.accelerator.reduce(cut, "sum"))
        norm = float((cut + squares.where(shared, 0).sum()).sqrt())
        if largest is not None and norm > largest:
            torch._foreach_mul_([local(g) for g in gradients], largest / norm)
        return norm

    # ---- between processes -----------------------------------------------------------------

    def mean(self, values: Tensor) -> list[float]:
        """The values, averaged over the processes."""
        return cast(Tensor, self.accelerator.reduce(values, "mean")).tolist()

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Ends the group of processes, if this run is one of several."""
        if self.world > 1:
            self.accelerator.end_training()


# ---- tensors that are spread over processes ----------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    cut = getattr(tensor, "to_local", None)
    return tensor if cut is None else cast(Tensor, cut())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts. Every process must call it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast(Tensor, gather())


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, whole and copied to the CPU."""
    return {name: whole(t.detach()).to("cpu", copy=True) for name, t in state.items()}


def put(tensor: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be spread over processes."""
    with torch.no_grad():
        mesh = getattr(tensor, "device_mesh", None)
        if mesh is None:
            tensor.copy_(value)
        else:
            from torch.distributed.tensor import distribute_tensor

            spread = distribute_tensor(value.to(tensor.device), mesh, cast(Any, tensor).placements)
            tensor.copy_(spread)
