"""Device functions that have a value: how kernels call them, and what they compute, over arrays of threads.

Their text is in `runtime`; the ones here are what `emulate` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx as tir

from targets._tvm.builder import Builder, Expr, cast, const

Values = NDArray[Any]

Let = Callable[[Expr], Expr]
"""Names a value, so that it is computed once."""

EVEN, ODD, _INTERLEAVED = 0x4240, 0x4341, 0x6240
"""Selectors of `permute` with a second word of zeros: bytes 0 and 2, or 1 and 3, as 16-bit fields; and the way back."""


def value_of(name: str, *arguments: Expr) -> Expr:
    """The int32 of a call of a device function."""
    return tir.call_extern("int32", name, *arguments)


def word_at(b: Builder, buffer: Any, index: Expr) -> Expr:
    """4 bytes from a multiple of 4, as int32."""
    return value_of("q_word", tir.address_of(b.load(buffer, index)))


def permute(a: Expr, b: Expr, selector: int) -> Expr:
    """Bytes of two words: nibble i of the selector is the number, 0 to 7, of byte i of the result."""
    return value_of("q_permute", a, b, const(selector))


def interleave(even: Expr, odd: Expr) -> Expr:
    """The lower bytes of the 16-bit fields of two words, in turn."""
    return permute(even, odd, _INTERLEAVED)


def dot4(acc: Expr, x: Expr, w: Expr) -> Expr:
    """acc + Σ over the 4 bytes, uint8 of x times int8 of w."""
    return value_of("q_dot4", acc, x, w)


def transposed(let: Let, words: list[Expr]) -> list[Expr]:
    """Of a 4×4 matrix of bytes, the rows of its transpose."""
    halves = ([let(permute(words[i], words[i + 1], s)) for i in (0, 2)] for s in (0x5140, 0x7362))
    return [let(permute(one, two, s)) for one, two in halves for s in (0x5410, 0x7632)]


def joined(let: Let, values: list[Expr]) -> Expr:
    """Four uint8 as one word."""
    words = [cast("int32", value) for value in values]
    one, two = (let(permute(words[i], words[i + 1], 0x4040)) for i in (0, 2))
    return permute(one, two, 0x5410)


def _permute(a: Values, b: Values, selector: Values) -> Values:
    both = np.stack([np.ascontiguousarray(v, dtype=np.int32).view(np.uint8).reshape(-1, 4) for v in (a, b)], axis=1)
    both = both.reshape(-1, 8)
    picked = np.stack([both[np.arange(len(both)), selector >> (4 * i) & 7] for i in range(4)], axis=1)
    return np.ascontiguousarray(picked).view(np.int32).reshape(-1)


def _dot4(acc: Values, x: Values, w: Values) -> Values:
    unsigned = np.ascontiguousarray(x, dtype=np.int32).view(np.uint8).reshape(-1, 4).astype(np.int32)
    signed = np.ascontiguousarray(w, dtype=np.int32).view(np.int8).reshape(-1, 4).astype(np.int32)
    return np.asarray(acc + (unsigned * signed).sum(axis=1, dtype=np.int32))


def _swap(value: Values) -> Values:
    return np.asarray(value.reshape(-1, 2)[:, ::-1].reshape(-1))


VALUES: Mapping[str, Callable[..., Values]] = {"q_permute": _permute, "q_dot4": _dot4, "q_swap": _swap}
"""By name: from one array of int32 for each argument, an element for each thread, to the results."""

TOGETHER = frozenset({"q_swap"})
"""Those that all threads of a warp must reach."""
