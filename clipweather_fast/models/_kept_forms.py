"""Frozen forms kept beside the modules they stand for, for as long as these stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clipweather_fast.models._fingerprint import Fingerprint
from clipweather_fast.ops._direct import unobserved

__all__ = ["FormKey", "KeptForms"]

Form = TypeVar("Form")
#: What a form depends on: the layers and the state of their weights.
FormKey = tuple[Any, ...]


class KeptForms(Generic[Form]):
    """One form of each module and precision; it goes when the module goes."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[
            nn.Module, dict[torch.dtype, tuple[FormKey, Form, Fingerprint]]
        ] = WeakKeyDictionary()
        self._building = Lock()

    def get(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        key: FormKey,
        weights: Callable[[], Iterable[Tensor]],
        build: Callable[[], Form],
    ) -> Form:
        """The form built when key and weights were what they are; else it is built.

        Args:
            module: what the form stands for.
            dtype: what it multiplies in.
            key: what it depends on.
            weights: those that the key knows; of their values a sample is compared as well.
            build: makes the form.
        """
        with self._building:
            forms = self._kept.setdefault(module, {})
            known = forms.get(dtype)
            if known is not None and known[0] == key and known[2].holds():
                return known[1]
            # It is kept: whoever counts a pass without computing it must not build it so.
            with unobserved(), torch.inference_mode(False), torch.no_grad():
                with torch.autocast("cpu", enabled=False):
                    form = build()
                forms[dtype] = (key, form, Fingerprint(weights()))
            return form

    def of(self, module: nn.Module) -> dict[torch.dtype, Form]:
        """The forms there are of a module, by precision."""
        return {dtype: form for dtype, (_, form, _) in self._kept.get(module, {}).items()}
