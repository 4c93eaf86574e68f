"""What a frozen layer makes of its weight when the first input wants it so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from clipweather_fast.ops._direct import unobserved

__all__ = ["Forms"]

Form = TypeVar("Form")


class Forms:
    """Forms of one weight; which is fastest depends on the size of the input."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Form]) -> Form:
        """The form under a key, made in the first call that wants it."""
        form: Form | None = self.made.get(key)
        if form is None:
            with (
                unobserved(),
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast("cpu", enabled=False),
            ):
                form = self.made[key] = make()
        return form
