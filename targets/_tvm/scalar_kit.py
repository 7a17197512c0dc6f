"""The arithmetic kit of scalar kernels whose shifts are all wide: what 32-bit processors can do in a few instructions.

A product of two 32-bit values is one instruction there, and its upper half a register; a 64-bit shift by a variable
count is many.  As in `targets._tvm.tir_kit`, a shift right by at least 32 needs the upper halves only.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Expr, cast, const, dtype_of
from targets._tvm.tir_kit import High, Narrow, Small

_HALF = 32
_SMALL = 1 << 30


class ScalarKit:
    """`TirKit(1, wide_shift=True)`, with the upper half of a sum taken before it is shifted.

    Values are Python integers, Narrow (int32), High (multiples of 2^32), or int64 expressions.
    """

    def i64(self, x: Any) -> Any:
        if isinstance(x, int | Narrow | High):
            return x
        if isinstance(x, Small):
            return Narrow(x.expr, small=True)
        return Narrow(cast("int32", x), small=dtype_of(x) == "uint8")

    def _wide(self, x: Any) -> Expr:
        if isinstance(x, int):
            return const(x, "int64")
        if isinstance(x, Narrow):
            return cast("int64", x.expr)
        return tir.shift_left(cast("int64", x.expr), const(_HALF, "int64")) if isinstance(x, High) else x

    def add(self, x: Any, y: Any) -> Any:
        if isinstance(x, Narrow) and x.small and isinstance(y, int) and abs(y) < _SMALL:
            return Narrow(x.expr + const(y), small=True)
        if isinstance(y, High):
            # Only the upper half is ever used, and adding to it first cannot carry into it.
            upper = cast("int32", tir.shift_right(self._wide(x), const(_HALF, "int64")))
            return High(upper + y.expr)
        return self._wide(x) + self._wide(y)

    def sub(self, x: Any, y: Any) -> Any:
        if isinstance(x, Narrow) and x.small and isinstance(y, int) and abs(y) < _SMALL:
            return Narrow(x.expr - const(y), small=True)
        return self._wide(x) - self._wide(y)

    def mul(self, x: Any, y: Any) -> Any:
        return self._wide(x) * self._wide(y)

    def shl(self, x: Any, s: Any) -> Any:
        if x == 1 and isinstance(s, Narrow):
            # The kit only shifts left to make the rounding constant 2^(e−1), and e > 32.
            return High(tir.shift_left(const(1), s.expr - const(_HALF)))
        return tir.shift_left(self._wide(x), self._wide(s))

    def shr(self, x: Any, s: Any) -> Any:
        if isinstance(x, High) and isinstance(s, Narrow):
            return Narrow(tir.shift_right(x.expr, s.expr - const(_HALF)), small=True)
        return tir.shift_right(self._wide(x), self._wide(s))

    def if_negative(self, x: Any, then: Any, otherwise: Any) -> Any:
        value = x.expr if isinstance(x, Narrow) else self._wide(x)
        zero = const(0, dtype_of(value))
        return tir.Select(value < zero, self._wide(then), self._wide(otherwise))

    def clip(self, x: Any, lo: int, hi: int) -> Any:
        if isinstance(x, Narrow):
            return Narrow(tir.min(tir.max(x.expr, const(lo)), const(hi)))
        wide = self._wide(x)
        return tir.min(tir.max(wide, const(lo, "int64")), const(hi, "int64"))

    def result(self, x: Any, dtype: str) -> Expr:
        return cast(dtype, x.expr if isinstance(x, Narrow) else x)
