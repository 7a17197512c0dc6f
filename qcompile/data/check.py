"""The one place where data is compared with what the model takes; every message names expected and given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompile.errors import DataError
from qcompile.ir import Array, Input

LABELS = "labels"
"""Name of the optional array of labels: one row per sample, numbers."""

_NEAR_LABELS = frozenset({"label", "y", "target", "targets", "Labels", "LABELS"})


@dataclass(frozen=True, slots=True)
class Header:
    """Shape (samples first) and dtype of an array that is perhaps not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def __str__(self) -> str:
        return f"{self.dtype.name}({','.join(map(str, self.shape))})"


def expected(inputs: Sequence[Input]) -> str:
    """What the model takes, for messages: `input float32(N,3,32,32)`."""
    return ", ".join(f"{p.name} float32({','.join(['N', *map(str, p.type.sample)])})" for p in inputs)


def check_headers(headers: Mapping[str, Header], inputs: Sequence[Input], source: str) -> int:
    """The number of samples of arrays that fit the model's inputs.

    Args:
        headers: by array name; `labels` may be among them.
        inputs: the graph's inputs; the data is float32 in real units whatever level the graph has.
        source: where the arrays come from, for messages.

    Raises:
        DataError: wrong names, dtypes or shapes, differing numbers of samples, or none at all.
    """
    _check_names(headers, inputs, source)
    for port in inputs:
        _check_input(port, headers[port.name], source)
    counts = {name: header.shape[0] if header.shape else 0 for name, header in headers.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{source}: the arrays have different numbers of samples: {listed}")
    if LABELS in headers and headers[LABELS].dtype.kind not in "iuf":
        raise DataError(f"{source}: `{LABELS}` must be numbers, not {headers[LABELS].dtype.name}")
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError(f"{source} holds no samples")
    return count


def _check_names(headers: Mapping[str, Header], inputs: Sequence[Input], source: str) -> None:
    wanted, given = {port.name for port in inputs}, set(headers) - {LABELS}
    if wanted == given:
        return
    hint = "name each array as the model names its input"
    if wanted < given:
        hint = "leave out arrays that are not inputs of the model"
        if given - wanted <= _NEAR_LABELS:
            hint = f"name the labels `{LABELS}`"
    listed = ", ".join(sorted(given)) or "none"
    raise DataError(f"{source}: expected the arrays {', '.join(sorted(wanted))}, found {listed}", hint=hint)


def _check_input(port: Input, header: Header, source: str) -> None:
    want = expected([port])
    if header.dtype.kind != "f":
        raise DataError(
            f"{source}: expected {want}, found {header}",
            hint="give the values the float model takes, after its preprocessing, as float32",
        )
    if header.shape[1:] != port.type.sample or not header.shape:
        hint = None
        if header.shape == port.type.sample:
            hint = "put the samples first: one sample has the shape " + str((1, *header.shape))
        elif len(header.shape) == 4 and _channels_first(header.shape) == port.type.sample:
            hint = "the channels come second (NCHW): x.transpose(0, 3, 1, 2)"
        raise DataError(f"{source}: expected {want}, found {header}", hint=hint)


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[3], shape[1], shape[2]


def as_float32(name: str, array: Array, source: str, start: int) -> Array:
    """The array as finite float32.

    Args:
        name: of the input, for messages.
        array: floating point, (n, …).
        source: where it comes from, for messages.
        start: number of its first sample.

    Raises:
        DataError: NaN or infinity, with the sample it is in.
    """
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        raise DataError(f"{source}: {name} holds NaN or infinity, first in sample {start + int(bad[0])}")
    return values


def check_arrays(arrays: Mapping[str, Array], inputs: Sequence[Input], source: str = "the data") -> dict[str, Array]:
    """Arrays in memory, compared with the model's inputs: finite float32 by name, and `labels` as they are.

    Raises:
        DataError: see `check_headers` and `as_float32`.
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    check_headers({name: Header(a.shape, a.dtype) for name, a in held.items()}, inputs, source)
    return {name: array if name == LABELS else as_float32(name, array, source, 0) for name, array in held.items()}
