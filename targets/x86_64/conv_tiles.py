"""Convolution and linear layers on AMX tiles, requantized while the next tiles are being multiplied.

A tile of pixels is read straight from the channels-last input: its rows lie one pixel's stride apart.  Weights are
packed int8[groups][steps][chunk/4][16 channels][4], or two to a byte (`tile_weights`).  Sums go through a few KiB of
stack to the vector registers, where the epilogue of one block runs between the multiplications of the next: the two
use different units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Expr, const, shuffle
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels import conv_direct
from targets._tvm.kernels.conv_direct import geometry_of, pack_bias
from targets._tvm.kernels.epilogue import Epilogue, store
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.tir_kit import in_order, narrowed
from targets.x86_64.amx import LINE, Tiles, pixel_register, weight_register
from targets.x86_64.tile_blocks import choose_blocks, choose_runs, flat_positions
from targets.x86_64.tile_weights import AHEAD, Nibbles, Panels, TileWeights, WholeBytes, fit_nibbles

_LANES = 16
_VECTORS = 4
"""Vectors of int32 that fill one of bytes: a part of the epilogue."""

_SHARED_BYTES = 24 << 10
"""Weights up to here stay in the first-level cache beside a tile row: then all channels of a pixel come together."""

_UNROLLED = 12
_TASKS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A block: its first group of channels and its first tile of pixels."""

    group: Expr
    tile: Expr


@dataclass(frozen=True, slots=True)
class Sums:
    """int32[rows, width]: the sums of a block, and where they begin in the buffer."""

    buffer: Any
    first: Expr


class TileConv:
    """The generator of one kernel."""

    def __init__(self, ctx: Context, nibbles: bool) -> None:
        node = ctx.anchor
        self.ctx, self.b = ctx, ctx.b
        self.geometry = g = geometry_of(ctx)
        self.source = ctx.stored(node.inputs[0]).buffer
        self.out_channels, _, kh, _ = g.weights.shape
        self.runs = runs = choose_runs(g)
        self.offsets = [
            i * g.dilation[0] * g.row + r * g.dilation[1] * g.pixel + c * runs.chunk
            for i in range(kh)
            for r in range(runs.count)
            for c in range(runs.chunks)
        ]
        self.steps = len(self.offsets)
        self.all_groups = -(-self.out_channels // _LANES)
        self.tile_bytes = runs.chunk * _LANES
        self.weights = self._pack(nibbles)
        self.table = ctx.constant(ctx.pack("literal", values=self.offsets)) if self.steps > _UNROLLED else None
        self.bias = ctx.constant(pack_bias(ctx, self.all_groups * _LANES))
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)

    def _pack(self, nibbles: bool) -> TileWeights:
        ctx, runs, weights = self.ctx, self.runs, self.ctx.anchor.const("w")
        named = {"pixel": self.geometry.pixel, "merged": runs.merged, "chunks": runs.chunks, "chunk": runs.chunk}
        if nibbles:
            return Nibbles(ctx, ctx.pack("nibble_tiles", weights, **named, behind=AHEAD), self.tile_bytes)
        return WholeBytes(ctx, ctx.pack("tiles", weights, **named), self.tile_bytes)

    def emit(self) -> Emitted:
        last = self.out_channels - (self.all_groups - 1) * _LANES
        exact = last if self.all_groups * _LANES > self.geometry.room else None
        whole = self.all_groups - (exact is not None)
        if whole:
            _Part(self, 0, whole, None).emit()
        if exact is not None:
            _Part(self, whole, 1, exact).emit()
        fill_halo(self.ctx)
        return self.ctx.finish()


class _Part:
    """Consecutive groups of channels that are stored in whole, or the last one of which only `exact` are."""

    def __init__(self, conv: TileConv, first: int, count: int, exact: int | None) -> None:
        self.conv, self.b, self.ctx, self.geometry = conv, conv.b, conv.ctx, conv.geometry
        self.first, self.count, self.exact = first, count, exact
        g, self.steps = conv.geometry, conv.steps
        self.blocks = blocks = choose_blocks(g, count, conv.steps, conv.runs.chunk)
        self.all_tiles = blocks.columns if blocks.whole else g.height * blocks.columns
        self.outer = -(-count // blocks.groups)
        self.inner = -(-self.all_tiles // blocks.tiles)
        self.groups_first = self.steps * conv.tile_bytes * count > _SHARED_BYTES
        # A line is a stretch of neighbouring output pixels of one block.
        self.lines, self.line = (g.height, g.width) if blocks.whole else (blocks.tiles, blocks.rows)
        self.line_rows = g.row // g.pixel if blocks.whole else blocks.rows
        self.pixels = _VECTORS // blocks.groups
        self.packed = conv.epilogue.narrows and exact is None and self.line >= self.pixels
        if not self.packed:
            self.pixels = 1
        self.line_parts = -(-self.line // self.pixels)
        self.parts = self.lines * self.line_parts
        self.width = blocks.groups * _LANES
        """int32 of a pixel's sums."""

    def emit(self) -> None:
        b, total, g = self.b, self.outer * self.inner, self.geometry
        operations = g.height * g.width * self.count * _LANES * self.steps * self.conv.runs.chunk
        tasks = next(n for n in range(min(_TASKS, total), 0, -1) if total % n == 0)
        kind = self.ctx.parallel_kind(operations, tasks)
        tasks = tasks if kind == "parallel" else 1
        each = total // tasks
        rows, chunk = self.blocks.rows, self.conv.runs.chunk
        self.tiles = Tiles(self.ctx, rows, chunk)
        with b.loop(tasks, kind) as task:
            sums = Sums(*b.aligned_local("int32", self._rows() * self.width))
            self.conv.weights.allocate(Panels(self.steps, self.conv.tile_bytes, self.blocks.groups))
            self.tiles.configure()
            with b.loop(each) as i:
                self._multiply(b.let(task * each + i), sums, i if each > 1 else None)
            before = self._place(b.let(task * each + (each - 1)))
            with b.loop(self.parts) as j:
                self._finish(before, sums, j)
            self.tiles.release()

    def _rows(self) -> int:
        """Rows of sums."""
        return flat_positions(self.geometry) if self.blocks.whole else self.blocks.tiles * self.blocks.rows

    def _place(self, number: Expr) -> Place:
        """Of a block by its number."""
        b, blocks = self.b, self.blocks
        if self.groups_first:
            group, tile = _divmod(number, self.inner)
        else:
            tile, group = _divmod(number, self.outer)
        return Place(
            b.let(_clamped(group, blocks.groups, self.count, self.outer) + self.first),
            b.let(_clamped(tile, blocks.tiles, self.all_tiles, self.inner)),
        )

    def _pixel(self, tile: Expr) -> tuple[Expr, Expr]:
        """Output row and column of a tile's first pixel."""
        blocks, width = self.blocks, self.geometry.width
        if blocks.columns == 1:
            return tile, const(0)
        row, column = _divmod(tile, blocks.columns)
        return row, _clamped(column, blocks.rows, width, blocks.columns)

    def _inputs(self, place: Place) -> list[Expr]:
        """Where the first step's bytes of each tile begin."""
        b, g, blocks = self.b, self.geometry, self.blocks
        if blocks.whole:
            return [const(g.origin + start * g.pixel) for start in self._starts()]
        found = []
        for t in range(blocks.tiles):
            row, col = self._pixel(place.tile + t)
            found.append(b.let(row * (g.stride[0] * g.row) + col * (g.stride[1] * g.pixel) + g.origin))
        return found

    def _starts(self) -> list[int]:
        """The row of sums at which each tile begins."""
        rows = self.blocks.rows
        return [min(t * rows, self._rows() - rows) for t in range(self.blocks.tiles)]

    def _ahead(self, number: Expr) -> tuple[int, Expr]:
        """Cache lines to fetch in each step of a block, and where they begin.

        Every inference reads all weights once from memory or the last cache.  While channels are worked on, their
        successors are fetched; behind a kernel's weights lie those of the next kernel.
        """
        panel = self.steps * self.conv.weights.stored
        size = panel * (self.blocks.groups if self.groups_first else self.count)
        over = self.inner if self.groups_first else self.outer * self.inner
        lines = -(-size // (LINE * over * self.steps))
        done, part = _divmod(number, over)
        start = self.first * panel + (done + 1) * size
        return lines, self.b.let(start + part * (lines * LINE * self.steps))

    def _multiply(self, number: Expr, sums: Sums, index: Expr | None) -> None:
        """The sums of a block; meanwhile the epilogue of the block before, unless `index` is 0 or None."""
        b, tiles, blocks = self.b, self.tiles, self.blocks
        place, before = self._place(number), self._place(number - 1)
        inputs = self._inputs(place)
        lines, ahead = self._ahead(number)
        weights = self.conv.weights
        weights.begin(place.group)
        for n in range(blocks.groups):
            for t in range(blocks.tiles):
                tiles.load(t * blocks.groups + n, self.conv.bias, (place.group + n) * _LANES, 0)

        def step(s: Expr) -> None:
            if self.conv.table is None:
                offset: Expr = self.conv.offsets[s]
            else:
                offset = b.let(b.load(self.conv.table, s))
            weights.step(s)
            for u in range(lines):
                tiles.prefetch(weights.buffer, ahead + (s * (lines * LINE) + u * LINE))
            self._step([x + offset for x in inputs], s)

        each = -(-self.parts // self.steps)

        def part(j: Expr) -> None:
            if index is not None:
                with b.when(index > 0):
                    self._finish(before, sums, j)

        if self.conv.table is None:
            for s in range(self.steps):
                step(s)
                for j in range(s * each, min((s + 1) * each, self.parts)):
                    part(j)
        else:
            full = self.parts // each
            with b.loop(full) as s:
                step(s)
                for u in range(each):
                    part(s * each + u)
            for j in range(full * each, self.parts):
                part(j)
            with b.loop(self.steps - full) as s:
                step(s + full)
        for t, start in enumerate(self._starts()):
            for n in range(blocks.groups):
                where = start * self.width + n * _LANES
                tiles.store(t * blocks.groups + n, sums.buffer, sums.first + where, self.width * 4)

    def _step(self, inputs: Sequence[Expr], s: Expr) -> None:
        """One multiplication into every accumulator."""
        tiles, blocks, g = self.tiles, self.blocks, self.geometry
        for t, x in enumerate(inputs):
            tiles.load(pixel_register(t), self.conv.source, x, g.stride[1] * g.pixel)
            for n in range(blocks.groups):
                if t == 0:
                    tiles.load(weight_register(n), *self.conv.weights.tile(n, s), LINE)
                tiles.multiply(t * blocks.groups + n, pixel_register(t), weight_register(n))

    def _finish(self, place: Place, sums: Sums, part: Expr) -> None:
        """One part of a block's epilogue: four vectors, or one pixel's."""
        b, blocks = self.b, self.blocks
        line, within = _divmod(part, self.line_parts)
        within = _clamped(within, self.pixels, self.line, self.line_parts)
        if blocks.whole:
            row, col = line, within
        else:
            row, col = self._pixel(place.tile + line)
            col = col + within
        row, col = b.let(row), b.let(col)
        start = b.let(sums.first + (line * self.line_rows + within) * self.width)
        items = [(p, n) for p in range(self.pixels) for n in range(blocks.groups)]
        channels = [b.let((place.group + n) * _LANES) for n in range(blocks.groups)]

        def sum_at(p: int, n: int) -> Expr:
            return b.let(b.load(sums.buffer, start + (p * self.width + n * _LANES), _LANES))

        if not self.packed:
            for p, n in items:
                coords = self._coords(channels[n], row, col + p)
                store(self.ctx, coords, self.conv.epilogue.value(sum_at(p, n), coords, _LANES), self.exact)
            return
        late = [
            self.conv.epilogue.late(sum_at(p, n), self._coords(channels[n], row, col + p), _LANES) for p, n in items
        ]
        whole = b.let(in_order(narrowed(self.ctx.isa, late)))
        size = self.width
        for p in range(self.pixels):
            lanes = list(range(p * size, (p + 1) * size))
            value = whole if self.pixels == 1 else shuffle(whole, whole, lanes)
            store(self.ctx, self._coords(channels[0], row, col + p), value)

    def _coords(self, channel: Expr, row: Expr, col: Expr) -> tuple[Expr, ...]:
        """Logical output coordinates; a linear layer's columns are its flattened leading dimensions."""
        shape = self.ctx.out_layout.shape
        if self.ctx.anchor.op == "conv2d":
            return channel, row, col
        return (*([const(0)] * (len(shape) - 2)), col, channel)


def _divmod(a: Expr, b: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of what is not negative."""
    if b == 1:
        return a, const(0)
    return (a // b, a % b) if isinstance(a, int) else (tir.truncdiv(a, const(b)), tir.truncmod(a, const(b)))


def _clamped(index: Expr, size: int, total: int, count: int) -> Expr:
    """The start of piece number `index` of `count` pieces of `size` that cover `total`: the last may overlap."""
    if count == 1:
        return const(0)
    if count * size == total:
        return index * size
    return min(index * size, total - size) if isinstance(index, int) else tir.min(index * size, const(total - size))


def is_legal(ctx: Context) -> bool:
    """As for any direct convolution; one group, more than one pixel, and room for what is read behind a run."""
    if not conv_direct.is_legal(ctx):
        return False
    g = geometry_of(ctx)
    source = ctx.program.buffers[ctx.anchor.inputs[0]]
    room = source.place == "arena" or choose_runs(g).surplus == 0
    return g.groups == 1 and math.prod((g.height, g.width)) > 1 and room


def may_pack(ctx: Context) -> bool:
    """Whether the kernel may hold its weights two to a byte; `is_legal` besides."""
    if not is_legal(ctx):
        return False
    g = geometry_of(ctx)
    return fit_nibbles(g.weights, g.height * g.width)


def emit(ctx: Context, nibbles: bool = False) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal`, and with `nibbles` `may_pack`, holds."""
    return TileConv(ctx, nibbles).emit()
