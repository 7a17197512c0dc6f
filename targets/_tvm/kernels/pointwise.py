"""The loop nest of kernels that compute every output element on its own: vectors of lanes, exact tails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

from tvm import tirx as tir

from qcompile.ir import storage
from qcompile.target.program import Layout
from targets._tvm.builder import Expr, const, vec
from targets._tvm.context import Context
from targets._tvm.isa import Threads, widest
from targets._tvm.kernels.epilogue import store

At = Callable[[Sequence[Expr], int], Expr]
"""(output coordinates, lanes) → the elements to store from there along the lane axis."""


_ELEMENT_COST = 8
"""Multiply-adds of a tuned convolution in the time of one operation here."""


BY_ROWS = 8
"""Rows of an image from which on threads share its rows, and never its channels.

All kernels decide alike, so that a thread finds most of its inputs in the caches of its own processor.
"""


@dataclass(frozen=True, slots=True)
class Region:
    """A box of the output, and how its elements are computed.

    Attributes:
        origin, extent: the box in logical coordinates.
        lanes: widest vector `at` may be asked for; 1 where its operands are not consecutive in lanes.
        operations: multiply-adds of the whole box, which decide whether threads are worth their launch.
    """

    origin: tuple[int, ...]
    extent: tuple[int, ...]
    at: At
    lanes: int
    operations: int


def lane_axis(layout: Layout) -> int:
    """The dimension whose elements are consecutive in memory."""
    return 0 if layout.channels_last else len(layout.shape) - 1


def same_lanes(a: Layout, b: Layout) -> bool:
    """Whether consecutive elements of one are consecutive elements of the other, for equal ranks."""
    return len(a.shape) == len(b.shape) and lane_axis(a) == lane_axis(b)


def emit_region(ctx: Context, region: Region) -> None:
    """Loops over a box, in memory order.

    Vectors of a channels-last box loop rows, channel blocks, pixels: what depends on the channel alone is
    loaded once a row.
    """
    layout = ctx.out_layout
    rank = len(region.extent)
    if rank == 0:
        store(ctx, [], region.at([], 1))
        return
    axis = lane_axis(layout)
    size, lanes = region.extent[axis], region.lanes
    # Tails of channels-last vectors may read and compute surplus lanes (they stay inside the arena) but
    # store exactly.
    blocks = -(-size // lanes) if layout.channels_last else size // lanes
    parts: list[tuple[int, int, int, int | None]] = []
    if blocks and lanes > 1:
        full = size // lanes
        if full:
            parts.append((0, full, lanes, None))
        if blocks > full:
            room = layout.pixel - (region.origin[axis] + full * lanes)
            whole = room >= lanes and region.origin[axis] + size == layout.shape[axis]
            parts.append((full * lanes, 1, lanes, None if whole else size - full * lanes))
        if not layout.channels_last and size % lanes:
            parts.append((full * lanes, size % lanes, 1, None))
    else:
        parts.append((0, size, 1, None))
    for start, count, width, exact in parts:
        _emit_part(ctx, region, axis, region.origin[axis] + start, count, width, exact)


def _emit_part(ctx: Context, region: Region, axis: int, start: int, count: int, width: int, exact: int | None) -> None:
    b = ctx.b
    order = [d for d in range(len(region.extent)) if d != axis]
    held = ctx.out_layout.channels_last and width > 1 and not isinstance(ctx.isa, Threads)
    order.insert(1 if held else len(order), axis)
    coords: list[Expr] = [const(0)] * len(region.extent)
    with ExitStack() as stack:
        for position, d in enumerate(order):
            extent = count if d == axis else region.extent[d]
            kind = ctx.parallel_kind(region.operations * _ELEMENT_COST, extent) if position == 0 else "serial"
            i = stack.enter_context(b.loop(extent, kind))
            coords[d] = i * width + start if d == axis else i + region.origin[d]
        store(ctx, coords, b.let(region.at(coords, width)), exact)


def fill_box(ctx: Context, origin: tuple[Expr, int, int], extent: tuple[Expr, int, int], value: int) -> None:
    """Store a constant in a box of a channels-last output, in physical (row, column, channel) coordinates."""
    b, layout = ctx.b, ctx.out_layout
    rows, cols, channels = extent
    if (isinstance(rows, int) and rows <= 0) or cols <= 0 or channels <= 0:
        return
    dtype = storage(layout.dtype).name
    if channels == layout.pixel:
        cols, channels = 1, cols * channels
        if origin[1] == 0 and channels == layout.cols * layout.pixel and isinstance(rows, int):
            rows, channels = 1, rows * channels
    pixel, row = layout.pixel, layout.cols * layout.pixel
    base = origin[0] * row + origin[1] * pixel + origin[2]
    wide = 1 if ctx.isa.lanes == 1 else widest(ctx.isa, 64 if dtype == "uint8" else 16)
    with b.loop(rows) as r, b.loop(cols) as c:
        start = b.let(r * row + c * pixel + base)
        if channels >= wide:
            with b.loop(channels // wide) as i:
                b.store(ctx.output.buffer, start + i * wide, const(value, vec(dtype, wide)))
        done = channels // wide * wide
        while done < channels:
            step = 1 << ((channels - done).bit_length() - 1)
            b.store(ctx.output.buffer, start + done, const(value, vec(dtype, step)))
            done += step


def fill_halo(ctx: Context, own: tuple[Expr, Expr] | None = None) -> None:
    """Fill the frame around a channels-last output, so that its readers need no border tests.

    With `own` only at the rows from the first to before the second: a thread fills what lies beside its own rows, or
    the cache lines they share would travel to another processor and back.
    """
    layout = ctx.out_layout
    if not layout.channels_last or not any(layout.halo):
        return
    top, left, bottom, right = layout.halo
    _, height, width = layout.shape
    pixel, cols, rows = layout.pixel, layout.cols, layout.rows
    start, end = own or (0, height)
    count = ctx.b.let(end - start) if own else height
    with ctx.b.when(tir.all(count > 0, start == 0)) if own else nullcontext():
        fill_box(ctx, (0, 0, 0), (top, cols, pixel), layout.fill)
    fill_box(ctx, (start + top, 0, 0), (count, left, pixel), layout.fill)
    fill_box(ctx, (start + top, left + width, 0), (count, right, pixel), layout.fill)
    with ctx.b.when(tir.all(count > 0, end == height)) if own else nullcontext():
        fill_box(ctx, (rows - bottom, 0, 0), (bottom, cols, pixel), layout.fill)
