"""The arithmetic kit of TIR: `qcompile.semantics.scalar` over it is a kernel expression, scalar or vector.

A 64-bit vector is held as its even and odd lanes (two vectors of half as many int64), because every vector
unit multiplies the even 32-bit lanes into 64 bits in one instruction.  Widening is lazy: a widened 32-bit
value remembers where it came from.  A shift right by at least 32 (`wide_shift`) only needs the high halves,
which merge back into one 32-bit vector before the shift: the same value at half the work.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Expr, broadcast, cast, const, dtype_of, lanes_of, llvm, reinterpret, shuffle, vec
from targets._tvm.isa import EvenProducts, Isa, Rounding

_HALF = 32
_SMALL = 1 << 30

WIDE_SHIFT = 33
"""From here on the rounding constant 2^(e−1) has no bits in the lower half of a product."""


@dataclass(frozen=True, slots=True)
class Small:
    """An int32 operand far enough from ±2^31 that a constant up to 2^30 may be added: a shift count, scaled
    uint8."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Narrow:
    """64-bit values known to fit int32: `expr` is `lanes` int32.  `small`: far enough from 2^31 to add a
    zero point."""

    expr: Expr
    small: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """`lanes` 64-bit values as int64 vectors of the even and of the odd lanes, plus `high`·2^32 (int32
    lanes)."""

    even: Expr
    odd: Expr
    high: Expr = None


@dataclass(frozen=True, slots=True)
class High:
    """`lanes` 64-bit values that are multiples of 2^32: `expr` is int32, their upper halves."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Products:
    """Σ aᵢ·bᵢ of int32 lanes, not yet multiplied: one of two products of the same value is chosen by choosing the
    factor.  For an instruction set that is `Rounding` also of several products, plus 2^(e − 1) where `half`."""

    factors: tuple[tuple[Expr, Expr], ...]
    half: bool = False


class TirKit:
    """64-bit arithmetic on `lanes` int32 or uint8 expressions at once; 1 lane is plain int64.

    Args:
        lanes: vector width of the values; scalars and Python integers are broadcast.
        wide_shift: every shift count given to `shr` is at least WIDE_SHIFT (the caller checked them).
        isa: if it is `Rounding`, a wide shift uses its instructions; if it has `EvenProducts`, they are prepared for.
    """

    def __init__(self, lanes: int = 1, wide_shift: bool = False, isa: Isa | None = None) -> None:
        self.lanes = lanes
        self.wide_shift = wide_shift
        self._rounding = isa if isinstance(isa, Rounding) and wide_shift and lanes > 1 else None
        self._moves = isinstance(isa, EvenProducts)
        self._half = vec("int64", lanes // 2)

    def i64(self, x: Any) -> Any:
        """Widen a Python integer, or a uint8 or int32 expression."""
        if isinstance(x, int | Narrow | Pair | High):
            return x
        if self.lanes == 1:
            return cast("int64", x.expr if isinstance(x, Small) else x)
        if isinstance(x, Small):
            return Narrow(broadcast(x.expr, self.lanes), small=True)
        whole = broadcast(cast(vec("int32", lanes_of(x)), x), self.lanes)
        return Narrow(whole, small=dtype_of(x).startswith("uint8"))

    def _wide(self, x: Any) -> Any:
        """The int64 form: one expression for a single lane, else a Pair."""
        if self.lanes == 1:
            return const(x, "int64") if isinstance(x, int) else x
        if isinstance(x, High):
            x = Pair(const(0, self._half), const(0, self._half), x.expr)
        if isinstance(x, int):
            return Pair(const(x, self._half), const(x, self._half))
        if isinstance(x, Pair):
            if x.high is None:
                return x
            parts = self._wide(Narrow(x.high))
            bits = const(_HALF, self._half)
            return Pair(x.even + (parts.even << bits), x.odd + (parts.odd << bits))
        if isinstance(x, Products):
            terms = [self._apply(lambda a, b: a * b, Narrow(a), Narrow(b)) for a, b in x.factors]
            return functools.reduce(lambda a, b: self._apply(operator.add, a, b), terms)
        whole = reinterpret(self._half, x.expr)
        bits = const(_HALF, self._half)
        if self._moves:
            moved = shuffle(x.expr, x.expr, [i | 1 for i in range(self.lanes)])
            return Pair(
                *(tir.shift_right(tir.shift_left(v, bits), bits) for v in (whole, reinterpret(self._half, moved)))
            )
        return Pair(tir.shift_right(tir.shift_left(whole, bits), bits), tir.shift_right(whole, bits))

    def _apply(self, function: Any, x: Any, y: Any) -> Any:
        a, b = self._wide(x), self._wide(y)
        if self.lanes == 1:
            return function(a, b)
        return Pair(function(a.even, b.even), function(a.odd, b.odd))

    def add(self, x: Any, y: Any) -> Any:
        if isinstance(x, Narrow) and x.small and isinstance(y, int) and abs(y) < _SMALL:
            return Narrow(x.expr + const(y, vec("int32", self.lanes)), small=True)
        if isinstance(x, Pair) and x.high is None and isinstance(y, High):
            return Pair(x.even, x.odd, y.expr)
        if isinstance(x, Products):
            if self._rounding and isinstance(y, High):
                return Products(x.factors, half=True)
            if self._rounding and isinstance(y, Products):
                return Products(x.factors + y.factors)
            return self.add(self._wide(x), y)
        return self._apply(lambda a, b: a + b, x, y)

    def sub(self, x: Any, y: Any) -> Any:
        if isinstance(x, Narrow) and x.small and isinstance(y, int) and abs(y) < _SMALL:
            return Narrow(x.expr - const(y, vec("int32", self.lanes)), small=True)
        return self._apply(lambda a, b: a - b, x, y)

    def mul(self, x: Any, y: Any) -> Any:
        if isinstance(x, Narrow) and isinstance(y, Narrow):
            return Products(((x.expr, y.expr),))
        return self._apply(lambda a, b: a * b, x, y)

    def shl(self, x: Any, s: Any) -> Any:
        if self.lanes > 1 and self.wide_shift and x == 1 and isinstance(s, Narrow):
            # The kit only shifts left to make the rounding constant 2^(e−1), and e ≥ WIDE_SHIFT.
            whole = vec("int32", self.lanes)
            return High(tir.shift_left(const(1, whole), s.expr - const(_HALF, whole)))
        return self._apply(tir.shift_left, x, s)

    def shr(self, x: Any, s: Any) -> Any:
        if isinstance(x, Products):
            if self._rounding:
                return self._rounded(x, s.expr)
            x = self._wide(x)
        if self.lanes == 1 or not self.wide_shift or not isinstance(x, Pair):
            return self._apply(tir.shift_right, x, s)
        whole = vec("int32", self.lanes)
        high = shuffle(
            reinterpret(whole, x.even),
            reinterpret(whole, x.odd),
            [2 * (i // 2) + 1 + (self.lanes if i % 2 else 0) for i in range(self.lanes)],
        )
        rest = const(s - _HALF, whole) if isinstance(s, int) else s.expr - const(_HALF, whole)
        # Products stay within 2^62 and the rounding constant within 2^61, so their upper halves add without
        # wrapping.
        high = high if x.high is None else high + x.high
        return Narrow(tir.shift_right(high, rest), small=True)

    def _rounded(self, x: Products, e: Expr) -> Narrow:
        """(Σ aᵢ·bᵢ + 2^(e − 1)) >> e from the upper halves: floor(floor(s / 2^k) / 2^(e − k)) = floor(s / 2^e)."""
        isa, whole = self._rounding, vec("int32", self.lanes)
        assert isa is not None and x.half
        if len(x.factors) == 1:
            upper = isa.double_high(*x.factors[0])
            return Narrow(isa.rounded_shift(upper, e - const(_HALF - 1, whole)), small=True)
        halves = []
        for first in (0, self.lanes // 2):
            order = list(range(first, first + self.lanes // 2))
            wide = [tuple(cast(self._half, shuffle(v, v, order)) for v in factors) for factors in x.factors]
            halves.append(reinterpret(whole, functools.reduce(operator.add, [a * b for a, b in wide])))
        upper = shuffle(halves[0], halves[1], list(range(1, 2 * self.lanes, 2)))
        return Narrow(isa.rounded_shift(upper, e - const(_HALF, whole)), small=True)

    def if_negative(self, x: Any, then: Any, otherwise: Any) -> Any:
        def select(value: Expr, a: Expr, b: Expr) -> Expr:
            zero = const(0, "int64" if self.lanes == 1 else self._half)
            return tir.Select(value < zero, a, b)

        if isinstance(then, Products):
            # Both are products of x: the multiplier is chosen.
            negative = x.expr < const(0, vec("int32", self.lanes))
            return Products(((x.expr, tir.Select(negative, then.factors[0][1], otherwise.factors[0][1])),))
        v, a, b = self._wide(x), self._wide(then), self._wide(otherwise)
        if self.lanes == 1:
            return select(v, a, b)
        return Pair(select(v.even, a.even, b.even), select(v.odd, a.odd, b.odd))

    def clip(self, x: Any, lo: int, hi: int) -> Any:
        if isinstance(x, Narrow):
            whole = vec("int32", self.lanes)
            return Narrow(tir.min(tir.max(x.expr, const(lo, whole)), const(hi, whole)))
        x = self._apply(tir.max, x, lo)
        return self._apply(tir.min, x, hi)

    def result(self, x: Any, dtype: str) -> Expr:
        """A clipped value in its storage dtype (`uint8` or `int32`), all lanes in order."""
        target = vec(dtype, self.lanes)
        if isinstance(x, Narrow):
            return cast(target, x.expr)
        if isinstance(x, Products):
            x = self._wide(x)
        if self.lanes == 1:
            return cast(dtype, x)
        whole = vec("int32", self.lanes)
        order = [2 * (i // 2) + (self.lanes if i % 2 else 0) for i in range(self.lanes)]
        return cast(target, shuffle(reinterpret(whole, x.even), reinterpret(whole, x.odd), order))


@dataclass(frozen=True, slots=True)
class Late:
    """`lanes` int32 whose storage value is clip(expr + offset, lo, hi), for 0 ≤ lo ≤ hi ≤ 255."""

    expr: Expr
    offset: int = 0
    lo: int = 0
    hi: int = 255


class LateKit(TirKit):
    """Leaves zero point and clip to `narrowed`, where they cost a quarter: bytes, not int32 lanes."""

    def add(self, x: Any, y: Any) -> Any:
        if isinstance(x, Late):
            return Late(x.expr, y)
        return super().add(x, y)

    def shr(self, x: Any, s: Any) -> Any:
        shifted = super().shr(x, s)
        return Late(shifted.expr) if isinstance(shifted, Narrow) else shifted

    def clip(self, x: Any, lo: int, hi: int) -> Any:
        if isinstance(x, Late):
            return Late(x.expr, x.offset, lo, hi)
        return Late(self.result(super().clip(x, lo, hi), "int32"))


def narrowed(isa: Isa, values: list[Late]) -> Expr:
    """Four vectors of one requantization as uint8: in every 16-byte segment 4 values of each, in order.

    Saturation to int16 and to uint8 only cuts off what the clip cuts off anyway, and so do the zero point's
    saturating addition and the clip of bytes: limits of the range first, then within it.
    """
    offset, lo, hi = values[0].offset, values[0].lo, values[0].hi
    a, b, c, d = (v.expr for v in values)
    halves = [isa.saturate16(a, b), isa.saturate16(c, d)]
    if offset:
        wide = dtype_of(halves[0])
        halves = [llvm("llvm.sadd.sat", wide, half, const(offset, wide)) for half in halves]
    whole = isa.saturate8(*halves)
    if lo > 0:
        whole = tir.max(whole, const(lo, dtype_of(whole)))
    return tir.min(whole, const(hi, dtype_of(whole))) if hi < 255 else whole


def in_order(packed: Expr) -> Expr:
    """The bytes of `narrowed`, first all of the first vector, then of the second, …"""
    lanes = lanes_of(packed) // 4
    words, segments = reinterpret(vec("int32", lanes), packed), lanes // 4
    return reinterpret(dtype_of(packed), shuffle(words, words, [s * 4 + v for v in range(4) for s in range(segments)]))
