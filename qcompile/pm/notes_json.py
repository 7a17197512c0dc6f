"""Notes as JSON and back, by the declared types of their dataclasses.

Mappings with keys that are not text become lists of pairs; numbers JSON lacks (inf, nan) become text; arrays become
their bytes in base64, with dtype and shape.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from qcompile.errors import UsageError
from qcompile.ir import NoteKey, Notes
from qcompile.pm import facts

FACTS: tuple[NoteKey[Any], ...] = tuple(value for value in vars(facts).values() if isinstance(value, NoteKey))
"""All keys of `qcompile.pm.facts`."""


def notes_to_json(notes: Notes, keys: Iterable[NoteKey[Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Plain JSON values, `{key name: {subject: value}}`, of some or all tables, sorted by key."""
    chosen = notes.keys if keys is None else set(keys) & notes.keys
    ordered = sorted(chosen, key=lambda key: key.name)
    return {key.name: {subject: _encode(value) for subject, value in notes[key].items()} for key in ordered}


def notes_from_json(data: Mapping[str, Any], keys: Iterable[NoteKey[Any]] = FACTS) -> Notes:
    """The notes in what `notes_to_json` made.

    Raises:
        UsageError: a key is unknown, or a value does not have the form of its type.
    """
    known = {key.name: key for key in keys}
    notes = Notes()
    for name, table in data.items():
        if name not in known:
            raise UsageError(f"unknown note {name!r}", hint=f"notes are {', '.join(sorted(known))}")
        key = known[name]
        decoded = {}
        for subject, value in table.items():
            try:
                decoded[subject] = _decode(key.type, value)
            except (TypeError, ValueError, KeyError) as error:
                raise UsageError(f"note {name!r} of {subject!r} cannot be read: {error!r}") from error
        notes = notes.with_table(key, decoded)
    return notes


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return [[_encode(key), _encode(item)] for key, item in value.items()]
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "base64": data}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "item"):
        return _encode(value.item())
    raise TypeError(f"a note cannot hold {type(value).__name__}")


@cache
def _hints(cls: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _decode(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is np.ndarray:
        flat = np.frombuffer(base64.b64decode(value["base64"]), np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        names = [f.name for f in dataclasses.fields(hint)]
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise ValueError(f"{hint.__name__} has the fields {', '.join(names)}")
        return hint(**{name: _decode(_hints(hint)[name], value[name]) for name in names})
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else value
        return {_decode(args[0], key): _decode(args[1], item) for key, item in pairs}
    if origin is tuple:
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else args
        return tuple(_decode(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _decode(next(kind for kind in args if kind is not type(None)), value)
    if hint is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{value!r} is not of type {hint}")
