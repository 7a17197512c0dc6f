"""Operators that copy elements: index maps from output coordinates to the element they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompile.ir import Node, storage
from targets._tvm.builder import Expr, const, vec
from targets._tvm.context import Context, Stored, flat_index
from targets._tvm.kernels.epilogue import load_at
from targets._tvm.kernels.pointwise import Region, lane_axis

_WIDE_COPY = 64
"""Bytes of the widest copy."""


def regions(ctx: Context, node: Node) -> list[Region]:
    """The boxes that make up the output of a movement operator."""
    layout = ctx.out_layout
    whole = ((0,) * len(layout.shape), layout.shape)
    match node.op:
        case "concat":
            return _concat(ctx, node)
        case "pad":
            return _pad(ctx, node)
        case "slice":
            starts, steps = node.attrs.ints("starts"), node.attrs.ints("steps")
            aligned = steps[lane_axis(layout)] == 1
            return [_copy(ctx, node.inputs[0], *whole, lambda at: [
                c * k + s for c, k, s in zip(at, steps, starts, strict=True)], aligned)]  # fmt: skip
        case "transpose":
            perm = [p - 1 for p in node.attrs.ints("perm")[1:]]
            source = ctx.layout(node.inputs[0])
            aligned = bool(perm) and perm[lane_axis(layout)] == lane_axis(source)
            return [_copy(ctx, node.inputs[0], *whole, lambda at: [
                at[perm.index(d)] for d in range(len(perm))], aligned)]  # fmt: skip
        case "resize":
            rows, cols = (ctx.constant(ctx.pack("literal", values=node.attrs.ints(k))) for k in ("rows", "cols"))
            load = ctx.b.load
            return [_copy(ctx, node.inputs[0], *whole, lambda at: [
                at[0], load(rows, at[1]), load(cols, at[2])], layout.channels_last)]  # fmt: skip
        case "reshape":
            shape = ctx.layout(node.inputs[0]).shape
            if shape == layout.shape:
                return [_copy(ctx, node.inputs[0], *whole, list, True)]
            return [_copy(ctx, node.inputs[0], *whole, lambda at: _unflatten(
                flat_index(at, layout.shape), shape), False)]  # fmt: skip
    raise KeyError(node.op)


def _unflatten(index: Expr, shape: Sequence[int]) -> list[Expr]:
    """Row-major coordinates of a flat index."""
    coords: list[Expr] = []
    for size in reversed(shape):
        coords.insert(0, index % size if len(coords) < len(shape) - 1 else index)
        index = index // size
    return coords


def _lanes(ctx: Context, source: Stored, size: int, aligned: bool) -> int:
    """The widest copy: lane axes agree, and no wider than the box needs."""
    if ctx.isa.lanes == 1 or not aligned or source.layout.channels_last != ctx.out_layout.channels_last:
        return 1
    widest = _WIDE_COPY // storage(ctx.out_layout.dtype).itemsize
    while widest > 16 and widest > size:
        widest //= 2
    return min(widest, 16) if widest > size else widest


def _copy(
    ctx: Context,
    value: str,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    index: Callable[[Sequence[Expr]], list[Expr]],
    aligned: bool,
) -> Region:
    """A box whose elements come from one value; `aligned`: the map keeps the lane axis, step 1."""
    source = ctx.stored(value)
    size = extent[lane_axis(ctx.out_layout)] if extent else 1
    lanes = _lanes(ctx, source, size, aligned)

    def at(coords: Sequence[Expr], width: int) -> Expr:
        return load_at(ctx, source, index(coords), width)

    return Region(origin, extent, at, lanes, int(np.prod(extent)) // 4)


def _concat(ctx: Context, node: Node) -> list[Region]:
    axis = node.attrs.int("axis") - 1
    rank = len(ctx.out_layout.shape)
    found, done = [], 0
    for value in node.inputs:
        shape = ctx.layout(value).shape
        origin = tuple(done if d == axis else 0 for d in range(rank))

        def index(coords: Sequence[Expr], start: int = done) -> list[Expr]:
            return [c - start if d == axis else c for d, c in enumerate(coords)]

        found.append(_copy(ctx, value, origin, shape, index, True))
        done += shape[axis]
    return found


def _pad(ctx: Context, node: Node) -> list[Region]:
    """The constant everywhere, then the value inside it."""
    layout, pads = ctx.out_layout, node.attrs.ints("pads")
    before = pads[: len(pads) // 2]
    dtype = storage(layout.dtype).name
    fill = int(node.attrs.float("value"))

    def constant(coords: Sequence[Expr], lanes: int) -> Expr:
        return const(fill, vec(dtype, lanes))

    def index(coords: Sequence[Expr]) -> list[Expr]:
        return [c - p for c, p in zip(coords, before, strict=True)]

    everywhere = Region((0,) * len(layout.shape), layout.shape, constant, 1 if ctx.isa.lanes == 1 else 16, 0)
    return [
        everywhere,
        _copy(ctx, node.inputs[0], tuple(before), ctx.layout(node.inputs[0]).shape, index, True),
    ]
