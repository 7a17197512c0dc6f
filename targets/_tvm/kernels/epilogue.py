"""The tail of a kernel: from an accumulator to the stored element, in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qcompile.errors import InternalError
from qcompile.ir import Node, int_range, storage
from qcompile.semantics import scalar
from targets._tvm.builder import Expr, broadcast, cast, const, lanes_of, vec
from targets._tvm.context import Context, Stored
from targets._tvm.kernels.bounds import accumulator_bound
from targets._tvm.scalar_kit import ScalarKit
from targets._tvm.tir_kit import WIDE_SHIFT, Late, LateKit, Small, TirKit

_ACCUMULATOR = 1 << 31
_SMALL_VALUE = 1 << 29
_TOTAL = 1 << 62


@dataclass(frozen=True, slots=True)
class Scale:
    """Every term and the divisor are multiplied by 2^bits: the same result, exactly.

    Attributes:
        wide: all shifts are then at least WIDE_SHIFT.
        on_value: the bits that term i takes on its value.
        on_multiplier: the bits that its multiplier takes instead.
    """

    bits: int
    wide: bool
    on_value: tuple[int, ...]
    on_multiplier: tuple[int, ...]


def choose_scale(ctx: Context, node: Node, anchor: str | None, anchor_bits: int = 0) -> Scale | None:
    """The scaling with wide shifts if one is provably free of overflow, else the smallest one; None if
    there is none.

    `anchor_bits`: the accumulator comes multiplied by 2^anchor_bits already.
    """
    bits = max(anchor_bits, WIDE_SHIFT - int(np.min(ctx.const(node, "e"))))
    return _scale(ctx, node, anchor, bits, anchor_bits) or _scale(ctx, node, anchor, anchor_bits, anchor_bits)


def _scale(ctx: Context, node: Node, anchor: str | None, bits: int, anchor_bits: int) -> Scale | None:
    e = ctx.const(node, "e")
    on_value, on_multiplier, total = [], [], 1 << (int(np.max(e)) + bits - 1)
    for i, (value, zero) in enumerate(zip(node.inputs, node.attrs.ints("zeros"), strict=True)):
        roles = [f"m{i}", "mneg"] if node.const("mneg") else [f"m{i}"]
        largest = max(int(np.max(np.abs(ctx.const(node, r).astype(np.int64)))) for r in roles)
        small = value != anchor and ctx.layout(value).dtype != "i32"
        if value == anchor:
            reach = min(accumulator_bound(ctx, ctx.anchor), _ACCUMULATOR) + abs(zero)
        else:
            reach = (int_range(ctx.layout(value).dtype)[1] if small else _ACCUMULATOR) + abs(zero)
        rest = bits - (anchor_bits if value == anchor else 0)
        shift_value = small and reach << bits < _SMALL_VALUE
        if rest and not shift_value and largest << rest >= _ACCUMULATOR:
            # A sum of few products has room; shifting it costs less than 64-bit arithmetic.
            shift_value = value == anchor and reach << bits < _ACCUMULATOR
            if not shift_value:
                return None
        on_value.append(rest if shift_value else 0)
        on_multiplier.append(0 if shift_value else rest)
        total += reach * largest << bits
    wide = int(np.min(e)) + bits >= WIDE_SHIFT
    if (bits or wide) and total >= _TOTAL:
        return Scale(0, False, (0,) * len(on_value), (0,) * len(on_value)) if not bits else None
    return Scale(bits, wide, tuple(on_value), tuple(on_multiplier))


class Table(Protocol):
    """Where an epilogue finds a constant of the requant."""

    def at(self, coords: Sequence[Expr], lanes: int) -> Expr:
        """The values for `lanes` elements from `coords`."""


def per_channel(ctx: Context) -> bool:
    """Whether every constant of the fused requant is one number, or one for each output channel."""
    node, rank = ctx.kernel.epilogue, len(ctx.out_layout.shape)
    axis = 0 if ctx.anchor.op == "conv2d" else rank - 1
    for role, _ in node.consts if node else ():
        shape = ctx.const(node, role).shape  # type: ignore[arg-type]
        shape = (1,) * (rank - len(shape)) + shape
        if any(size != 1 for d, size in enumerate(shape) if d != axis):
            return False
    return True


class ParamTable:
    """A constant that broadcasts to one sample, packed so that lanes are consecutive.

    Rank 3 in channels-last order (H, W, C), other ranks row-major; the lane axis is padded to whole vectors.
    """

    def __init__(self, ctx: Context, constant: str, rank: int, channels_last: bool) -> None:
        packed = ctx.pack("lane_table", constant, rank=rank, channels_last=channels_last, lanes=ctx.isa.lanes)
        self._channels_last = channels_last
        self._shape = packed.array.shape
        self._ctx = ctx
        self._scalar = int(packed.array.reshape(-1)[0]) if packed.array.size == 1 else None
        self._pointer = None if packed.array.size == 1 else ctx.constant(packed)

    def at(self, coords: Sequence[Expr], lanes: int) -> Expr:
        """The values for `lanes` elements from `coords` along the lane axis."""
        if self._scalar is not None:
            return const(self._scalar, vec("int32", lanes))
        if self._channels_last:
            coords = (coords[1], coords[2], coords[0])
        index: Expr = const(0)
        for coord, size in zip(coords, self._shape, strict=True):
            if size > 1:
                index = index * size + coord
        width = lanes if self._shape[-1] > 1 else 1
        return broadcast(self._ctx.b.load(self._pointer, index, width), lanes)


def load_at(ctx: Context, source: Stored, coords: Sequence[Expr], lanes: int) -> Expr:
    """Elements of a stored value as int32 lanes, broadcasting dimensions of size 1.

    uint8 stays uint8 (the kit widens it); lanes run along the lane axis of the layout.
    """
    shape = source.layout.shape
    at = [const(0) if size == 1 else coord for coord, size in zip(coords, shape, strict=True)]
    axis = 0 if source.layout.channels_last else len(shape) - 1
    width = 1 if shape and shape[axis] == 1 else lanes
    return broadcast(ctx.b.load(source.buffer, source.address(at), width), lanes)


class Epilogue:
    """The fused requant of a kernel, or a plain store of the anchor's int32 where there is none.

    Args:
        anchor_bits: the accumulator comes multiplied by 2^anchor_bits.
        table: where constants are, if not in memory packed as `ParamTable` does.
        read: a stored value where the kernel holds it already; None elsewhere.
    """

    def __init__(
        self,
        ctx: Context,
        node: Node | None,
        anchor: str | None,
        anchor_bits: int = 0,
        table: Callable[[str], Table] | None = None,
        read: Callable[[str, Sequence[Expr], int], Expr | None] = lambda value, coords, lanes: None,
    ) -> None:
        self._ctx = ctx
        self._node = node
        self._anchor = anchor
        self._read = read
        self._dtype = storage(ctx.out_layout.dtype).name
        if node is None:
            return
        layout = ctx.out_layout
        rank = len(layout.shape)

        def found(role: str) -> Table | None:
            constant = node.const(role)
            if constant is None:
                return None
            return table(constant) if table else ParamTable(ctx, constant, rank, layout.channels_last)

        scale = choose_scale(ctx, node, anchor, anchor_bits)
        if scale is None:
            raise InternalError("the accumulator cannot be scaled without overflow", node=node.name)
        self._scale = scale
        self._multipliers = [found(f"m{i}") for i in range(len(node.inputs))]
        self._shift = found("e")
        self._negative = found("mneg")

    @property
    def terms(self) -> tuple[str, ...]:
        """Stored values the requant reads besides the accumulator."""
        return tuple(v for v in (self._node.inputs if self._node else ()) if v != self._anchor)

    def value(self, acc: Expr | None, coords: Sequence[Expr], lanes: int) -> Expr:
        """The element(s) to store, in the storage dtype; `acc` is int32, None where the kernel has no
        anchor."""
        if self._node is None:
            return cast(vec(self._dtype, lanes), acc)
        scalar_only = self._ctx.isa.lanes == 1 and self._scale.wide
        kit = ScalarKit() if scalar_only else TirKit(lanes, self._scale.wide, self._ctx.isa)
        return kit.result(self._requant(kit, acc, coords, lanes), self._dtype)

    @property
    def narrows(self) -> bool:
        """Whether `late` may be used: a requant whose result is stored in bytes."""
        return self._node is not None and self._dtype == "uint8"

    def late(self, acc: Expr, coords: Sequence[Expr], lanes: int) -> Late:
        """As `value`, but not yet clipped: for `narrowed`."""
        found = self._requant(LateKit(lanes, self._scale.wide, self._ctx.isa), acc, coords, lanes)
        return Late(self._ctx.b.let(found.expr), found.offset, found.lo, found.hi)

    def _load(self, value: str, coords: Sequence[Expr], lanes: int) -> Expr:
        held = self._read(value, coords, lanes)
        return load_at(self._ctx, self._ctx.stored(value), coords, lanes) if held is None else held

    def _requant(self, kit: TirKit | ScalarKit, acc: Expr | None, coords: Sequence[Expr], lanes: int) -> Any:
        assert self._node is not None
        attrs, b = self._node.attrs, self._ctx.b
        scale = self._scale
        whole = vec("int32", lanes)
        xs = [acc if v == self._anchor else self._load(v, coords, lanes) for v in self._node.inputs]
        at: list[Any] = [t.at(coords, lanes) if t else None for t in (*self._multipliers, self._shift, self._negative)]
        *multipliers, shift, negative = [None if v is None else b.let(v) for v in at]
        zeros = list(attrs.ints("zeros"))
        if scale.bits:
            shift = shift + const(scale.bits, whole)
        for i, (on_value, bits) in enumerate(zip(scale.on_value, scale.on_multiplier, strict=True)):
            if on_value:
                shifted = cast(whole, xs[i]) << const(on_value, whole)
                xs[i] = shifted if self._node.inputs[i] == self._anchor else Small(shifted)
                zeros[i] <<= scale.bits
            if bits:
                multipliers[i] = multipliers[i] << const(bits, whole)
                negative = None if negative is None else negative << const(bits, whole)
        return scalar.requant(
            kit, xs, multipliers, Small(shift), zeros,
            attrs.int("zp"), attrs.int("lo"), attrs.int("hi"), negative,
        )  # fmt: skip


def store(ctx: Context, coords: Sequence[Expr], value: Expr, count: int | None = None) -> None:
    """Store lanes from `coords`; with `count`, only the first `count` of them (lane exact)."""
    from targets._tvm.builder import shuffle

    address = ctx.b.let(ctx.output.address(coords))
    lanes = lanes_of(value)
    if count is None or count == lanes:
        ctx.b.store(ctx.output.buffer, address, value)
        return
    value = ctx.b.let(value)
    done = 0
    while done < count:
        step = 1 << ((count - done).bit_length() - 1)
        part = shuffle(value, value, list(range(done, done + step)))
        ctx.b.store(ctx.output.buffer, address + done, part)
        done += step
