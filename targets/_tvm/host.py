"""The host's side of the input boundary as native code: floats to integers, quickly, and exactly as defined.

This is the only floating point that is ever generated, and it lives in a library of its own, `boundary.so`: it does
what `qcompile.semantics.grids.quantize` does, before the first integer kernel runs.  The integer library never
calls it, and whoever has integers already does without it.

    int qcompile_quantize(control, scale, inverse, x, out)

`control` is int32: [elements, zero, lowest, highest, 0]; the last becomes 1 where an element is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx as tir

from targets._tvm.build import compile_function, link
from targets._tvm.builder import Builder, Expr, broadcast, cast, const, llvm, reinterpret, vec
from targets._tvm.quantizer import BOUNDARY, ENTRY

_LANES, _VECTORS = 16, 4
_BLOCK = _LANES * _VECTORS
_LARGEST = 512.0
"""Quotients beyond are outside of every grid of 8 bits, wherever its zero lies."""
_SURE = 0.5 - 1e-4
"""How far a quotient in float32 may be from an integer to be rounded to it: its error is below 512·2^-23 < 1e-4."""
_EXPONENT = 0x7F800000


def write_boundary(options: Mapping[str, str], directory: Path) -> None:
    """Compile `boundary.so` into a folder; equal options give equal bytes."""
    link([_object(tuple(sorted(options.items())))], directory / BOUNDARY, options)


@cache
def _object(options: tuple[tuple[str, str], ...]) -> bytes:
    return compile_function(_quantize_function(), dict(options), floats=True).object


def _float(value: float, dtype: str) -> Expr:
    scalar, _, lanes = dtype.partition("x")
    return broadcast(tir.FloatImm(scalar, value), int(lanes or 1))


def _quantize_function() -> Any:
    b = Builder()
    control, scale, inverse = b.pointer("control", "int32"), b.pointer("scale", "float64"), b.pointer("inv", "float32")
    x, out = b.pointer("x", "float32"), b.pointer("out", "uint8")
    count, zero = b.let(b.load(control, 0)), b.let(b.load(control, 1))
    lowest, highest = b.let(b.load(control, 2)), b.let(b.load(control, 3))
    divisor, factor = b.let(b.load(scale, 0)), b.let(b.load(inverse, 0))
    largest = b.local("int32", _LANES)
    b.store(largest, 0, const(0, vec("int32", _LANES)))

    def exactly(at: Expr, lanes: int) -> None:
        """The definition: a quotient in float64, rounded half to even."""
        wide = vec("float64", lanes)
        suffix = "f64" if lanes == 1 else f"v{lanes}f64"
        quotient = cast(wide, b.load(x, at, lanes)) / broadcast(divisor, lanes)
        limited = tir.max(tir.min(quotient, _float(_LARGEST, wide)), _float(-_LARGEST, wide))
        b.store(out, at, saturated(llvm(f"llvm.rint.{suffix}", wide, limited), lanes))

    def saturated(rounded: Expr, lanes: int) -> Expr:
        total = cast(vec("int32", lanes), rounded) + broadcast(zero, lanes)
        return cast(vec("uint8", lanes), tir.min(tir.max(total, broadcast(lowest, lanes)), broadcast(highest, lanes)))

    def bits_of(at: Expr, lanes: int) -> Expr:
        """Sign cleared, so that larger integers are larger magnitudes; infinities and NaN are the largest."""
        return reinterpret(vec("int32", lanes), b.load(x, at, lanes)) & const(0x7FFFFFFF, vec("int32", lanes))

    wide, ints = vec("float32", _LANES), vec("int32", _LANES)
    with b.loop(tir.truncdiv(count, const(_BLOCK))) as block:
        rounded, furthest = [], const(0, ints)
        for part in range(_VECTORS):
            at = block * _BLOCK + part * _LANES
            b.store(largest, 0, tir.max(b.load(largest, 0, _LANES), bits_of(at, _LANES)))
            quotient = b.load(x, at, _LANES) * broadcast(factor, _LANES)
            quotient = b.let(tir.max(tir.min(quotient, _float(_LARGEST, wide)), _float(-_LARGEST, wide)))
            whole = b.let(llvm(f"llvm.rint.v{_LANES}f32", wide, quotient))
            rounded.append(whole)
            distance = reinterpret(ints, quotient - whole) & const(0x7FFFFFFF, ints)
            furthest = b.let(tir.max(furthest, distance))
        sure = int(np.float32(_SURE).view(np.int32))
        worst = b.let(llvm(f"llvm.vector.reduce.smax.v{_LANES}i32", "int32", furthest))
        with b.when(worst < const(sure)):
            for part, whole in enumerate(rounded):
                b.store(out, block * _BLOCK + part * _LANES, saturated(whole, _LANES))
        with b.when(worst >= const(sure)), b.loop(_VECTORS) as part:
            exactly(block * _BLOCK + part * _LANES, _LANES)
    done = b.let(tir.truncdiv(count, const(_BLOCK)) * _BLOCK)
    last = b.local("int32")
    b.store(last, 0, llvm(f"llvm.vector.reduce.smax.v{_LANES}i32", "int32", b.load(largest, 0, _LANES)))
    with b.loop(count - done) as i:
        b.store(last, 0, tir.max(b.load(last, 0), bits_of(done + i, 1)))
        exactly(done + i, 1)
    with b.when(b.load(last, 0) >= const(_EXPONENT)):
        b.store(control, 4, const(1))
    return b.function(ENTRY)
