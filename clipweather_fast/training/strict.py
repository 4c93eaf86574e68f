"""Sections of a configuration: frozen dataclasses read from plain values, strictly.

A key that a section does not have is an error that names the nearest one; a value of another type
is an error that says which was expected. Numbers written as ``2e-4``, which YAML takes for text,
are numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["plain", "section", "unknown_key"]

Made = TypeVar("Made")


def section(kind: type[Made], values: Any, where: str) -> Made:
    """The dataclass ``kind`` with these values; those left out have their defaults.

    Args:
        kind: a dataclass.
        values: a mapping, or None for an empty one.
        where: the section's name, for errors.

    Raises:
        ValueError: for an unknown key, or a value that is not allowed.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ValueError(f"configuration: {where} must be a section of keys, got {values!r}")
    types_ = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise unknown_key(f"{where}.{key}", names)
    return kind(
        **{key: _typed(value, types_[key], f"{where}.{key}") for key, value in values.items()}
    )


def unknown_key(key: str, known: Iterable[str]) -> ValueError:
    """The error for a key that is not among ``known`` (names without their section)."""
    known = list(known)
    where, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, known, 1)
    prefix = f"{where}." if where else ""
    hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}"
    return ValueError(f"configuration: there is no key {key}; {hint}")


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _typed(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``, one of bool, int, float, str, tuple[T, ...], unions and mappings."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, get_args(kind), where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_typed(item, get_args(kind)[0], where) for item in items)
    if origin is not None or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise ValueError(f"configuration: {where} must be keys with values, got {value!r}")
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not right:
        words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise ValueError(
            f"configuration: {where} must be {words.get(kind, kind.__name__)}, got {value!r}"
        )
    return value


def _one_of(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None:
        if types.NoneType in kinds:
            return None
        raise ValueError(f"configuration: {where} must not be empty")
    others = [kind for kind in kinds if kind is not types.NoneType]
    # An exact match first, so that 1 stays an integer where a number may be either.
    for kind in others:
        if type(value) is kind:
            return value
    error: ValueError | None = None
    for kind in others:
        try:
            return _typed(value, kind, where)
        except ValueError as found:
            error = found
    assert error is not None
    raise error
