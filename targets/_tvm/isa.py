"""What the shared kernels need to know about an instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx as tir

from targets._tvm.builder import Expr

Operand = tuple[Expr, ...]
"""A register operand of the dot product in whatever form the instruction set wants it."""


class Isa(Protocol):
    """One vector instruction set with a dot product of 4 uint8 by 4 int8 in every int32 lane.

    Attributes:
        lanes: int32 lanes of a vector register; also the output channels of one accumulator.
        registers: vector registers.
        dot_cycles, load_cycles: reciprocal throughput of one `dot4` and of one vector load or broadcast.
        dot_latency: cycles before an accumulator can be used again.
        operand_registers: registers one prepared operand takes.
        parallel_operations: multiply-adds below which a kernel is not worth sharing among threads.
    """

    @property
    def lanes(self) -> int: ...

    @property
    def registers(self) -> int: ...

    @property
    def dot_cycles(self) -> float: ...

    @property
    def load_cycles(self) -> float: ...

    @property
    def dot_latency(self) -> int: ...

    @property
    def operand_registers(self) -> int: ...

    @property
    def parallel_operations(self) -> int: ...

    def multiply_add(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """acc + x·w; `lanes` int32; 0 ≤ x ≤ 255 (zero-extended), −128 ≤ w ≤ 127 (sign-extended)."""

    def prepare_x(self, x: Expr) -> Operand:
        """From `lanes` int32 that each hold 4 uint8."""

    def prepare_w(self, w: Expr) -> Operand:
        """From `lanes` int32 that each hold 4 int8."""

    def dot4(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """acc + Σ over the 4 bytes of each lane, exactly."""

    def dot2(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """acc + Σ over the 2 int16 of each lane, modulo 2^32."""

    def saturate16(self, a: Expr, b: Expr) -> Expr:
        """int32 → int16 with signed saturation; in every 16-byte segment first the lanes of a, then of b."""

    def saturate8(self, a: Expr, b: Expr) -> Expr:
        """int16 → uint8 with saturation to 0…255; segments as in `saturate16`."""


class SignedInputs:
    """Base of an instruction set whose `dot4` multiplies int8 by int8.

    Attributes:
        offset: what `prepare_x` subtracts from every byte: 128, or 0 where the inputs are proved to be at most
            127.  The kernel adds offset·Σw to what it starts from.
    """

    __slots__ = ()
    offset: int


def input_offset(isa: Isa) -> int:
    """What the instruction set subtracts from input bytes before it multiplies."""
    return isa.offset if isinstance(isa, SignedInputs) else 0


class Rounding:
    """Base of an instruction set that multiplies into upper halves and shifts with rounding."""

    __slots__ = ()

    def double_high(self, a: Expr, b: Expr) -> Expr:
        """(2·a·b) >> 32 of int32 lanes that are not both −2^31."""
        raise NotImplementedError

    def rounded_shift(self, x: Expr, count: Expr) -> Expr:
        """(x + 2^(count − 1)) >> count of int32 lanes, without overflow; 1 ≤ count ≤ 31."""
        raise NotImplementedError


class EvenProducts:
    """Base of an instruction set that multiplies the even int32 lanes into 64 bits, but cannot shift int64 lanes right
    with their sign.  Odd lanes are moved to even places: LLVM would not see that what it shifts there by other means
    has 32 bits, and would multiply 64 bits in three parts."""

    __slots__ = ()


class Threads:
    """Base of an instruction set whose lanes are computed one by one: a table costs no more than a load, nothing is
    wider than `lanes`, and neighbours in memory are best computed at the same time."""

    __slots__ = ()


def widest(isa: Isa, default: int) -> int:
    """Elements of the widest vector that is loaded or stored; `default` where registers decide."""
    return isa.lanes if isinstance(isa, Threads) else default


@dataclass(frozen=True, slots=True)
class PortableIsa:
    """Plain vector arithmetic: right everywhere, fast nowhere in particular."""

    lanes: int = 8
    registers: int = 16
    dot_cycles: float = 4
    load_cycles: float = 0.5
    dot_latency: int = 5
    operand_registers: int = 1
    parallel_operations: int = 1 << 20

    def multiply_add(self, acc: Any, x: Any, w: Any) -> Any:
        return acc + x * w

    def prepare_x(self, x: Any) -> Operand:
        return (x,)

    def prepare_w(self, w: Any) -> Operand:
        return (w,)

    def dot4(self, acc: Any, x: Operand, w: Operand) -> Any:
        from targets._tvm.builder import const, vec

        wide = vec("int32", self.lanes)
        for byte in range(4):
            value = (x[0] >> const(8 * byte, wide)) & const(255, wide)
            factor = (w[0] << const(24 - 8 * byte, wide)) >> const(24, wide)
            acc = acc + value * factor
        return acc

    def dot2(self, acc: Any, x: Operand, w: Operand) -> Any:
        from targets._tvm.builder import const, vec

        wide = vec("int32", self.lanes)
        low, half = const(16, wide), const(16, wide)
        return acc + ((x[0] << low) >> low) * ((w[0] << low) >> low) + (x[0] >> half) * (w[0] >> half)

    def saturate16(self, a: Any, b: Any) -> Any:
        return self._saturate(a, b, "int16", -(1 << 15), (1 << 15) - 1)

    def saturate8(self, a: Any, b: Any) -> Any:
        return self._saturate(a, b, "uint8", 0, 255)

    def _saturate(self, a: Any, b: Any, dtype: str, lo: int, hi: int) -> Any:
        from targets._tvm.builder import cast, const, dtype_of, lanes_of, shuffle, vec

        wide, lanes = dtype_of(a), lanes_of(a)
        limited = [cast(vec(dtype, lanes), tir.min(tir.max(x, const(lo, wide)), const(hi, wide))) for x in (a, b)]
        part = lanes * 4 // self.lanes
        order = [s + i + lanes * which for s in range(0, lanes, part) for which in (0, 1) for i in range(part)]
        return shuffle(limited[0], limited[1], order)


SCALAR = PortableIsa(lanes=1)
"""One element at a time: for compilers that find the vectors themselves, and for GPUs."""
