"""Arithmetic kits: one interface over which every integer rule is written once.

`NumpyKit` makes a rule the reference, `IntervalKit` makes it the overflow proof; the TIR kit in
`targets/_tvm/tir_kit.py` makes it the kernel's expression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qcompile.errors import OverflowProofError
from qcompile.ir import Array

INT32 = (-(1 << 31), (1 << 31) - 1)
INT64 = (-(1 << 63), (1 << 63) - 1)


class Kit(Protocol):
    """64-bit integer arithmetic on the kit's own kind of value."""

    def i64(self, x: Any) -> Any:
        """Widen to 64 bits."""

    def add(self, x: Any, y: Any) -> Any: ...

    def sub(self, x: Any, y: Any) -> Any: ...

    def mul(self, x: Any, y: Any) -> Any: ...

    def shl(self, x: Any, s: Any) -> Any: ...

    def shr(self, x: Any, s: Any) -> Any:
        """Arithmetic shift right: floor(x / 2^s)."""

    def if_negative(self, x: Any, then: Any, otherwise: Any) -> Any:
        """Element-wise `then` where x < 0, else `otherwise`."""

    def clip(self, x: Any, lo: int, hi: int) -> Any: ...


class NumpyKit:
    """int64 arrays."""

    def i64(self, x: Any) -> Array:
        return np.asarray(x, dtype=np.int64)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def sub(self, x: Any, y: Any) -> Any:
        return x - y

    def mul(self, x: Any, y: Any) -> Any:
        return x * y

    def shl(self, x: Any, s: Any) -> Any:
        return np.left_shift(x, s)

    def shr(self, x: Any, s: Any) -> Any:
        return np.right_shift(x, s)

    def if_negative(self, x: Any, then: Any, otherwise: Any) -> Any:
        return np.where(x < 0, then, otherwise)

    def clip(self, x: Any, lo: int, hi: int) -> Any:
        return np.clip(x, lo, hi)


@dataclass(frozen=True, slots=True)
class Interval:
    """Element-wise bounds lo ≤ x ≤ hi: object arrays of Python integers, so the bounds themselves never wrap."""

    lo: Any
    hi: Any

    @staticmethod
    def of(lo: Any, hi: Any) -> Interval:
        return Interval(np.asarray(lo, dtype=object), np.asarray(hi, dtype=object))

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest element."""
        return int(np.min(self.lo)), int(np.max(self.hi))

    def union(self, other: Interval) -> Interval:
        return Interval(_least(self.lo, other.lo), _most(self.hi, other.hi))


def _least(x: Any, y: Any) -> Any:
    # dtype=object keeps Python integers of any size: NumPy would turn a 0-d array into a C long.
    return np.minimum(x, y, dtype=object)


def _most(x: Any, y: Any) -> Any:
    return np.maximum(x, y, dtype=object)


class IntervalKit:
    """Interval arithmetic; every intermediate result must fit 64 bits, else OverflowProofError."""

    def i64(self, x: Any) -> Interval:
        return x if isinstance(x, Interval) else Interval.of(x, x)

    def _checked(self, lo: Any, hi: Any) -> Interval:
        result = Interval(np.asarray(lo, dtype=object), np.asarray(hi, dtype=object))
        low, high = result.bounds
        if low < INT64[0] or high > INT64[1]:
            raise OverflowProofError(f"an intermediate result may reach [{low}, {high}], beyond 64 bits")
        return result

    def add(self, x: Any, y: Any) -> Interval:
        x, y = self.i64(x), self.i64(y)
        return self._checked(x.lo + y.lo, x.hi + y.hi)

    def sub(self, x: Any, y: Any) -> Interval:
        x, y = self.i64(x), self.i64(y)
        return self._checked(x.lo - y.hi, x.hi - y.lo)

    def mul(self, x: Any, y: Any) -> Interval:
        x, y = self.i64(x), self.i64(y)
        corners = [x.lo * y.lo, x.lo * y.hi, x.hi * y.lo, x.hi * y.hi]
        lo, hi = corners[0], corners[0]
        for corner in corners[1:]:
            lo, hi = _least(lo, corner), _most(hi, corner)
        return self._checked(lo, hi)

    def _shift(self, x: Any, s: Any, left: bool) -> Interval:
        x, s = self.i64(x), self.i64(s)
        if np.any(s.lo != s.hi):
            raise OverflowProofError("a shift count must be a constant")
        factor = np.asarray(2, dtype=object) ** s.lo
        return self._checked(x.lo * factor, x.hi * factor) if left else Interval(x.lo // factor, x.hi // factor)

    def shl(self, x: Any, s: Any) -> Interval:
        return self._shift(x, s, left=True)

    def shr(self, x: Any, s: Any) -> Interval:
        return self._shift(x, s, left=False)

    def if_negative(self, x: Any, then: Any, otherwise: Any) -> Interval:
        return self.i64(then).union(self.i64(otherwise))

    def clip(self, x: Any, lo: int, hi: int) -> Interval:
        x = self.i64(x)
        return Interval(_most(_least(x.lo, hi), lo), _most(_least(x.hi, hi), lo))
