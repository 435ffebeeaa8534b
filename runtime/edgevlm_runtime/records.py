"""Frozen records <-> JSON-ready values, strictly: what a manifest says is what the runtime reads, or an error.

Knows the types that manifest.py uses and no others; knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgevlm_runtime.errors import DamagedBundle

T = TypeVar("T")


def read_record(cls: type[T], data: object, where: str) -> T:
    """A `cls` (a dataclass) from what a JSON parser gave; `where` is the start of every message.

    Raises:
        DamagedBundle: an unknown or missing field, or a value of the wrong type; the message has the field's path.
    """
    if not isinstance(data, dict):
        raise _mismatch(where, "an object", data)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise DamagedBundle(f"{where}: unknown field {name!r}{_nearest(name, fields)}")
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], _below(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DamagedBundle(f"{where}: field {name!r} is missing")
    return cls(**values)


def write_record(record: object) -> dict[str, Any]:
    """The JSON-ready form of a record: nested dicts and lists; fields that are None are left out."""
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{type(record).__name__} is not a record")
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: _write(value) for name, value in values.items() if value is not None}


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The annotations of a record, evaluated once: that costs a millisecond."""
    return get_type_hints(cls)


def _write(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return write_record(value)
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    if isinstance(value, dict):
        return {key: _write(item) for key, item in value.items()}
    return value


def _read(kind: Any, data: object, where: str) -> Any:
    """`data` as the annotated type `kind`."""
    if kind in _SCALARS:
        return _SCALARS[kind](data, where)
    if dataclasses.is_dataclass(kind):
        return read_record(kind, data, where)  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _read_choice(arguments, data, where)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _read_items(arguments[0], data, where)
    if origin is dict and arguments[0] is str:
        return _read_entries(arguments[1], data, where)
    raise TypeError(f"{where}: records of type {kind} are not supported")


def _read_choice(choices: tuple[object, ...], data: object, where: str) -> object:
    for choice in choices:
        if type(data) is type(choice) and data == choice:
            return choice
    raise _mismatch(where, "one of " + ", ".join(map(str, choices)), data)


def _read_union(kinds: tuple[Any, ...], data: object, where: str) -> Any:
    """Optional[X], or a union of scalars."""
    if data is None and type(None) in kinds:
        return None
    some = [kind for kind in kinds if kind is not type(None)]
    if len(some) == 1:
        return _read(some[0], data, where)
    for kind in some:
        if type(data) is kind:
            return _read(kind, data, where)
    raise _mismatch(where, " or ".join(kind.__name__ for kind in some), data)


def _read_items(kind: Any, data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _mismatch(where, "a list", data)
    return tuple(_read(kind, item, f"{where}[{index}]") for index, item in enumerate(data))


def _read_entries(kind: Any, data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _mismatch(where, "an object", data)
    return {_read_str(key, where): _read(kind, value, _below(where, key)) for key, value in data.items()}


def _read_str(data: object, where: str) -> str:
    if not isinstance(data, str):
        raise _mismatch(where, "a string", data)
    # JSON escapes can spell half a character, which no file name and no tokenizer takes.
    if any("\ud800" <= character <= "\udfff" for character in data):
        raise _mismatch(where, "valid Unicode", data)
    return data


def _read_int(data: object, where: str) -> int:
    if not isinstance(data, int) or isinstance(data, bool):
        raise _mismatch(where, "an integer", data)
    if not -(2**63) <= data < 2**63:
        raise DamagedBundle(f"{where}: an integer of 64 bits is needed")
    return data


def _read_float(data: object, where: str) -> float:
    if isinstance(data, float) and math.isfinite(data):
        return data
    if isinstance(data, float):
        raise _mismatch(where, "a finite number", data)
    if not isinstance(data, int) or isinstance(data, bool):
        raise _mismatch(where, "a number", data)
    return float(_read_int(data, where))


def _read_bool(data: object, where: str) -> bool:
    if not isinstance(data, bool):
        raise _mismatch(where, "true or false", data)
    return data


_SCALARS: dict[Any, Callable[[object, str], Any]] = {
    str: _read_str,
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
}


def _below(where: str, name: str) -> str:
    """The path of a field: `manifest.json: image.crop_px`."""
    shown = name if name.isprintable() and name else repr(name)
    return f"{where}.{shown}" if ": " in where else f"{where}: {shown}"


def _mismatch(where: str, expected: str, data: object) -> DamagedBundle:
    shown = repr(data)
    found = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return DamagedBundle(f"{where}: {expected} is needed, not {found}")


def _nearest(name: object, known: dict[str, Any]) -> str:
    matches = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    return f", the nearest known one is {matches[0]!r}" if matches else ""
