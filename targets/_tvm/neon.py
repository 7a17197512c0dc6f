"""The 128-bit vectors of Arm: what AArch64 and 32-bit NEON share, and the three dot products of AArch64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from targets._tvm.builder import Expr, cast, const, lanes_of, llvm, reinterpret, shuffle, vec
from targets._tvm.isa import Isa, Operand, Rounding, SignedInputs

_WORDS, _HALVES, _BYTES = "int32x4", "int16x8", "int8x16"


class LaneIsa(Isa, Protocol):
    """An instruction set that multiplies weights by 4 of the 16 bytes of a register, without a broadcast load.

    Attributes:
        split: parts a step of packed weights is in: part s holds bytes s·4/split… of every lane's four.
    """

    @property
    def split(self) -> int: ...

    def vector(self, x: Expr) -> Expr:
        """16 input bytes (int32x4) as the instruction wants them."""

    def lane(self, x: Expr, i: int) -> Operand:
        """Bytes 4i to 4i + 3 of a `vector`, for every lane."""

    def lane_dot(self, acc: Expr, x: Operand, w: Expr) -> Expr:
        """acc + the dot product of 4 inputs with 4 weights of each lane, exactly."""


@dataclass(frozen=True, slots=True)
class Names:
    """How LLVM calls one architecture's instructions."""

    double_high: str
    rounded_shift: str
    narrow: str
    narrow_unsigned: str
    add_pairs: Callable[[Expr, Expr], Expr]
    """int16 × 8, int16 × 8 → int16 × 8: sums of neighbours, of the first and then of the second."""
    accumulate_pairs: Callable[[Expr, Expr], Expr]
    """int32 × 4 + the sums of neighbours of int16 × 8."""


def _add_pairs_64(a: Expr, b: Expr) -> Expr:
    return llvm("llvm.aarch64.neon.addp", _HALVES, a, b)


def _accumulate_pairs_64(acc: Expr, x: Expr) -> Expr:
    return acc + llvm("llvm.aarch64.neon.saddlp", _WORDS, x)


def _add_pairs_32(a: Expr, b: Expr) -> Expr:
    parts = [llvm("llvm.arm.neon.vpadd", "int16x4", part(x, 0, 4), part(x, 4, 4)) for x in (a, b)]
    return join(*parts)


def _accumulate_pairs_32(acc: Expr, x: Expr) -> Expr:
    return llvm("llvm.arm.neon.vpadals", _WORDS, acc, x)


AARCH64 = Names(
    "llvm.aarch64.neon.sqdmulh",
    "llvm.aarch64.neon.srshl",
    "llvm.aarch64.neon.sqxtn",
    "llvm.aarch64.neon.sqxtun",
    _add_pairs_64,
    _accumulate_pairs_64,
)
ARM = Names(
    "llvm.arm.neon.vqdmulh",
    "llvm.arm.neon.vrshifts",
    "llvm.arm.neon.vqmovns",
    "llvm.arm.neon.vqmovnsu",
    _add_pairs_32,
    _accumulate_pairs_32,
)


def part(x: Expr, first: int, count: int) -> Expr:
    """`count` consecutive lanes."""
    return shuffle(x, x, list(range(first, first + count)))


def join(a: Expr, b: Expr) -> Expr:
    """All lanes of one and then of the other."""
    return shuffle(a, b, list(range(lanes_of(a) + lanes_of(b))))


def splat(x: Expr, lane: int, lanes: int) -> Expr:
    """One lane of a vector in every lane."""
    return shuffle(x, x, [lane] * lanes)


@dataclass(frozen=True, slots=True)
class Vectors(Rounding):
    """What every 128-bit Arm instruction set does alike."""

    names: Names = AARCH64
    lanes: int = 4
    registers: int = 32
    dot_cycles: float = 0.5
    load_cycles: float = 0.5
    dot_latency: int = 4
    operand_registers: int = 1
    parallel_operations: int = 1 << 20
    split: int = 1

    def multiply_add(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        return acc + x * w

    def prepare_x(self, x: Expr) -> Operand:
        return (self.vector(x),)

    def prepare_w(self, w: Expr) -> Operand:
        return (w,)

    def vector(self, x: Expr) -> Expr:
        return x

    def lane(self, x: Expr, i: int) -> Operand:
        return (splat(x, i, 4),)

    def dot2(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        halves = [reinterpret(_HALVES, v[0]) for v in (x, w)]
        for first in (0, 1):
            # The pairs of x are alike in every lane or not: the shuffles are the same.
            a, b = (cast(_WORDS, shuffle(v, v, list(range(first, 8, 2)))) for v in halves)
            acc = acc + a * b
        return acc

    def saturate16(self, a: Expr, b: Expr) -> Expr:
        return join(*(llvm(self.names.narrow, vec("int16", lanes_of(v)), v) for v in (a, b)))

    def saturate8(self, a: Expr, b: Expr) -> Expr:
        parts = [llvm(self.names.narrow_unsigned, vec("int8", lanes_of(v)), v) for v in (a, b)]
        return reinterpret(vec("uint8", 2 * lanes_of(a)), join(*parts))

    def double_high(self, a: Expr, b: Expr) -> Expr:
        return llvm(self.names.double_high, _WORDS, a, b)

    def rounded_shift(self, x: Expr, count: Expr) -> Expr:
        return llvm(self.names.rounded_shift, _WORDS, x, const(0, _WORDS) - count)


def _shifted(x: Expr, offset: int) -> Expr:
    """Every byte less 128, as int8."""
    return x ^ const(0x80808080 - (1 << 32), _WORDS) if offset else x


@dataclass(frozen=True, slots=True)
class Dotprod(Vectors, SignedInputs):
    """`sdot`: 16 multiply-adds of int8.  Inputs above 127 are taken less 128."""

    offset: int = 128

    def vector(self, x: Expr) -> Expr:
        return _shifted(x, self.offset)

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        return self.lane_dot(acc, x, w[0])

    def lane_dot(self, acc: Expr, x: Operand, w: Expr) -> Expr:
        return llvm("llvm.aarch64.neon.sdot", _WORDS, acc, reinterpret(_BYTES, w), reinterpret(_BYTES, x[0]))


@dataclass(frozen=True, slots=True)
class Usdot(Vectors):
    """`usdot`: 16 multiply-adds of uint8 by int8 (FEAT_I8MM)."""

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        return self.lane_dot(acc, x, w[0])

    def lane_dot(self, acc: Expr, x: Operand, w: Expr) -> Expr:
        return llvm("llvm.aarch64.neon.usdot", _WORDS, acc, reinterpret(_BYTES, x[0]), reinterpret(_BYTES, w))


@dataclass(frozen=True, slots=True)
class Matrix(Usdot):
    """`usmmla`: 2 pixels × 8 uint8 by 8 int8 × 2 channels, 32 multiply-adds (FEAT_I8MM)."""

    dot_cycles: float = 0.25
    # A few less than there are: the compiler moves loads ahead, and spills where none is free.
    registers: int = 28

    def multiply(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """int32[2 pixels][2 channels] + x (uint8[2][8]) · w (int8[2][8])ᵀ."""
        return llvm("llvm.aarch64.neon.usmmla", _WORDS, acc, reinterpret(_BYTES, x), reinterpret(_BYTES, w))


@dataclass(frozen=True, slots=True)
class Int16(Vectors, SignedInputs):
    """Products of bytes as int16, summed in pairs: for cores without dot products.

    Exact where two products fit int16: |x| ≤ 128 and |w| ≤ 127.
    """

    offset: int = 128
    dot_cycles: float = 1.5
    split: int = 2

    def vector(self, x: Expr) -> Expr:
        return _shifted(x, self.offset)

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        a, b = (reinterpret(_BYTES, v[0]) for v in (x, w))
        low, high = (_product(part(a, first, 8), part(b, first, 8)) for first in (0, 8))
        return self.names.accumulate_pairs(acc, self.names.add_pairs(low, high))

    def lane(self, x: Expr, i: int) -> Operand:
        halves = reinterpret(_HALVES, x)
        return tuple(reinterpret("int8x8", splat(halves, 2 * i + k, 4)) for k in (0, 1))

    def lane_dot(self, acc: Expr, x: Operand, w: Expr) -> Expr:
        return self.flush(acc, self.products(None, x, w))

    def products(self, total: Expr | None, x: Operand, w: Expr) -> Expr:
        """int16 × 8: of each lane the products with bytes 0 and 2, and with bytes 1 and 3, added to `total`."""
        whole = reinterpret(_BYTES, w)
        for k in (0, 1):
            product = _product(x[k], part(whole, 8 * k, 8))
            total = product if total is None else total + product
        return total

    def flush(self, acc: Expr, total: Expr) -> Expr:
        """The sums of `products` added to int32 lanes."""
        return self.names.accumulate_pairs(acc, total)


def _product(a: Expr, b: Expr) -> Expr:
    """int8 × 8 · int8 × 8 → int16 × 8."""
    return cast(_HALVES, a) * cast(_HALVES, b)
