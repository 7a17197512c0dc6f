"""The tail of a kernel: from an accumulator to the stored element, in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompile.ir import Node, storage
from qcompile.semantics import scalar
from targets._tvm.builder import Expr, broadcast, cast, const, lanes_of, vec
from targets._tvm.context import Context, Stored
from targets._tvm.tir_kit import TirKit

_WIDE = 32
"""Shifts of at least this many bits only need the high halves of the products."""


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
    """The fused requant of a kernel, or a plain store of the anchor's int32 where there is none."""

    def __init__(self, ctx: Context, node: Node | None, anchor: str | None) -> None:
        self._ctx = ctx
        self._node = node
        self._anchor = anchor
        self._dtype = storage(ctx.out_layout.dtype).name
        if node is None:
            return
        layout = ctx.out_layout
        rank = len(layout.shape)

        def table(role: str) -> ParamTable | None:
            constant = node.const(role)
            return None if constant is None else ParamTable(ctx, constant, rank, layout.channels_last)

        self._wide = bool(np.min(ctx.const(node, "e")) >= _WIDE)
        self._multipliers = [table(f"m{i}") for i in range(len(node.inputs))]
        self._shift = table("e")
        self._negative = table("mneg")

    @property
    def terms(self) -> tuple[str, ...]:
        """Stored values the requant reads besides the accumulator."""
        return tuple(v for v in (self._node.inputs if self._node else ()) if v != self._anchor)

    def value(self, acc: Expr | None, coords: Sequence[Expr], lanes: int) -> Expr:
        """The element(s) to store, in the storage dtype; `acc` is int32, None where the kernel has no anchor."""
        if self._node is None:
            return cast(vec(self._dtype, lanes), acc)
        attrs, b = self._node.attrs, self._ctx.b
        kit = TirKit(lanes, wide_shift=self._wide)
        xs = [
            acc if v == self._anchor else load_at(self._ctx, self._ctx.stored(v), coords, lanes)
            for v in self._node.inputs
        ]
        at: list[Any] = [
            t.at(coords, lanes) if t else None for t in (*self._multipliers, self._shift, self._negative)
        ]
        *multipliers, shift, negative = [None if v is None else b.let(v) for v in at]
        result = scalar.requant(
            kit, xs, multipliers, shift, attrs.ints("zeros"),
            attrs.int("zp"), attrs.int("lo"), attrs.int("hi"), negative,
        )  # fmt: skip
        return kit.result(result, self._dtype)


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
