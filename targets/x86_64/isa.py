"""The instruction sets of x86-64: AVX-512 VNNI, and AVX2 with an exact and a range-proved dot product."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx as tir

from targets._tvm.builder import Expr, const, llvm, reinterpret
from targets._tvm.isa import EvenProducts, Operand

INT16_MAX = 32767
"""The largest sum of two products that `vpmaddubsw` holds; it saturates beyond."""


@dataclass(frozen=True, slots=True)
class Vnni:
    """AVX-512 VNNI: one `vpdpbusd` is 64 multiply-adds, without saturation."""

    lanes: int = 16
    registers: int = 32
    dot_cycles: float = 0.5
    load_cycles: float = 0.5
    dot_latency: int = 5
    operand_registers: int = 1
    parallel_operations: int = 1 << 19

    def multiply_add(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        # x has three zero bytes above its value, so only the lowest byte of w takes part.
        return self.dot4(acc, (x,), (w,))

    def prepare_x(self, x: Expr) -> Operand:
        return (x,)

    def prepare_w(self, w: Expr) -> Operand:
        return (w,)

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        bytes_x, bytes_w = reinterpret("int8x64", x[0]), reinterpret("int8x64", w[0])
        return llvm("llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, bytes_x, bytes_w)

    def dot2(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        pairs_x, pairs_w = reinterpret("int16x32", x[0]), reinterpret("int16x32", w[0])
        return llvm("llvm.x86.avx512.vpdpwssd.512", "int32x16", acc, pairs_x, pairs_w)

    def saturate16(self, a: Expr, b: Expr) -> Expr:
        return llvm("llvm.x86.avx512.packssdw.512", "int16x32", a, b)

    def saturate8(self, a: Expr, b: Expr) -> Expr:
        return reinterpret("uint8x64", llvm("llvm.x86.avx512.packuswb.512", "int8x64", a, b))


@dataclass(frozen=True, slots=True)
class Avx2(EvenProducts):
    """AVX2: `vpmaddwd` on the even and on the odd bytes widened to int16; exact for every value."""

    lanes: int = 8
    registers: int = 16
    dot_cycles: float = 1.5
    load_cycles: float = 0.5
    dot_latency: int = 3
    operand_registers: int = 2
    parallel_operations: int = 1 << 17

    def multiply_add(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        # The upper int16 of every lane of x is zero, so only the lower half of w takes part.
        return acc + _madd(x, w)

    def prepare_x(self, x: Expr) -> Operand:
        odd = tir.shift_right(reinterpret("uint16x16", x), const(8, "uint16x16"))
        return x & const(0x00FF00FF, "int32x8"), reinterpret("int32x8", odd)

    def prepare_w(self, w: Expr) -> Operand:
        halves, eight = reinterpret("int16x16", w), const(8, "int16x16")
        odd = tir.shift_right(halves, eight)
        even = tir.shift_right(tir.shift_left(halves, eight), eight)
        return reinterpret("int32x8", even), reinterpret("int32x8", odd)

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        return acc + _madd(x[0], w[0]) + _madd(x[1], w[1])

    def dot2(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        return acc + _madd(x[0], w[0])

    def saturate16(self, a: Expr, b: Expr) -> Expr:
        return llvm("llvm.x86.avx2.packssdw", "int16x16", a, b)

    def saturate8(self, a: Expr, b: Expr) -> Expr:
        return reinterpret("uint8x32", llvm("llvm.x86.avx2.packuswb", "int8x32", a, b))


@dataclass(frozen=True, slots=True)
class Avx2Saturating(Avx2):
    """AVX2 where every |x₀·w₀ + x₁·w₁| is proved ≤ 32767: `vpmaddubsw` cannot saturate."""

    dot_cycles: float = 1.0
    operand_registers: int = 1

    def prepare_x(self, x: Expr) -> Operand:
        return (x,)

    def prepare_w(self, w: Expr) -> Operand:
        return (w,)

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        return acc + self.widened(self.pairs(x[0], w[0]))

    def pairs(self, x: Expr, w: Expr) -> Expr:
        """x₀·w₀ + x₁·w₁ of every two bytes, as int16x16."""
        bytes_x, bytes_w = reinterpret("int8x32", x), reinterpret("int8x32", w)
        return llvm("llvm.x86.avx2.pmadd.ub.sw", "int16x16", bytes_x, bytes_w)

    def shuffled(self, x: Expr, order: Expr) -> Expr:
        """The bytes of x in another order within every 16 bytes; `order` holds numbers from 0 to 15."""
        bytes_x, bytes_order = reinterpret("int8x32", x), reinterpret("int8x32", order)
        return reinterpret("int32x8", llvm("llvm.x86.avx2.pshuf.b", "int8x32", bytes_x, bytes_order))

    def widened(self, pairs: Expr) -> Expr:
        """The sums of every two int16, as int32x8."""
        return _madd(reinterpret("int32x8", pairs), const(0x00010001, "int32x8"))


def _madd(x: Expr, w: Expr) -> Expr:
    """Σ of the two int16 products in every int32 lane."""
    return llvm("llvm.x86.avx2.pmadd.wd", "int32x8", reinterpret("int16x16", x), reinterpret("int16x16", w))
