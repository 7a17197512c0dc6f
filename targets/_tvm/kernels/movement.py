"""Operators that copy elements: index maps from output coordinates to the element they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompile.ir import Node, storage
from targets._tvm.builder import Expr, const, shuffle, vec
from targets._tvm.context import Context, Stored, flat_index
from targets._tvm.isa import Threads, widest
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
            if dealt := _dealt(ctx, node.inputs[0], starts, steps):
                return [dealt]
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
    if isinstance(ctx.isa, Threads):
        return ctx.isa.lanes
    lanes = _WIDE_COPY // storage(ctx.out_layout.dtype).itemsize
    while lanes > 16 and lanes > size:
        lanes //= 2
    return min(lanes, 16) if lanes > size else lanes


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


def _dealt(ctx: Context, value: str, starts: Sequence[int], steps: Sequence[int]) -> Region | None:
    """Every second, third or fourth byte along the lane axis: vectors of them picked from a wider load.

    The last load reads less than itself too much, and stays inside the memory behind buffers that kernels may read.
    """
    layout, source = ctx.out_layout, ctx.stored(value)
    step = steps[lane_axis(layout)]
    lanes = {2: _WIDE_COPY // 2, 3: _WIDE_COPY // 4, 4: _WIDE_COPY // 4}.get(step, 0)
    if isinstance(ctx.isa, Threads):
        # Threads load no more than they need.
        lanes = ctx.isa.lanes if lanes and layout.shape[0] % ctx.isa.lanes == 0 else 0
    if not lanes or ctx.isa.lanes == 1 or layout.dtype == "i32" or not layout.channels_last:
        return None
    if not source.layout.channels_last:
        return None

    # From a multiple of the step: channels before the first one are there, and the load is aligned.
    inside = starts[lane_axis(layout)] % step
    whole = [s - inside if d == lane_axis(layout) else s for d, s in enumerate(starts)]

    def at(coords: Sequence[Expr], width: int) -> Expr:
        first = source.address([c * k + s for c, k, s in zip(coords, steps, whole, strict=True)])
        wide = ctx.b.let(ctx.b.load(source.buffer, first, width * step))
        return shuffle(wide, wide, [lane * step + inside for lane in range(width)])

    while lanes > 16 and lanes > layout.shape[0]:
        lanes //= 2
    return Region((0,) * len(layout.shape), layout.shape, at, lanes, int(np.prod(layout.shape)) // 4)


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
    """The value, and the constant in the borders: boxes that share no element, because threads come in any order."""
    layout, pads = ctx.out_layout, node.attrs.ints("pads")
    before = pads[: len(pads) // 2]
    dtype = storage(layout.dtype).name
    fill = int(node.attrs.float("value"))

    def constant(coords: Sequence[Expr], lanes: int) -> Expr:
        return const(fill, vec(dtype, lanes))

    def index(coords: Sequence[Expr]) -> list[Expr]:
        return [c - p for c, p in zip(coords, before, strict=True)]

    lanes = 1 if ctx.isa.lanes == 1 else widest(ctx.isa, 16)
    shape, inside = layout.shape, ctx.layout(node.inputs[0]).shape
    found = [_copy(ctx, node.inputs[0], tuple(before), inside, index, True)]
    for d, size in enumerate(inside):
        # Before and behind the value in dimension d, inside of it in the dimensions before, whole in those behind.
        for start, count in ((0, before[d]), (before[d] + size, shape[d] - before[d] - size)):
            if count:
                origin = (*before[:d], start, *(0 for _ in shape[d + 1 :]))
                extent = (*inside[:d], count, *shape[d + 1 :])
                found.append(Region(origin, extent, constant, lanes, 0))
    return found
