"""Exact integer Winograd convolution, 3×3: 2.25 or 4 times fewer multiply-adds, the same bits.

`winograd_form` has the transforms and why they are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx as tir

from qcompile.errors import InternalError
from qcompile.ir import int_range
from targets._tvm.builder import Expr, broadcast, cast, const, reinterpret, shuffle, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import Operand, SignedInputs, input_offset
from targets._tvm.kernels.bounds import accumulator_bound
from targets._tvm.kernels.epilogue import Epilogue, choose_scale, per_channel, store
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.kernels.tiling import Tile, choose_tile, spans, unroll_of
from targets._tvm.kernels.window import holds_padding
from targets._tvm.kernels.winograd_form import Form
from targets._tvm.packing import STEP, WINOGRAD_OFFSET, winograd_transform
from targets._tvm.tir_kit import in_order, narrowed

_PRODUCT_BYTES = 64 << 10
STRIP_BYTES = 512 << 10
"""Transformed inputs that stay in the second cache."""

_SHARED_WEIGHTS = 3 << 19
"""Weights that every thread may read: more of them cost more than transforming all inputs in every thread."""

_TASKS = 8
"""Most threads among which blocks are shared."""

_WIDEST = 64
"""Bytes of the widest vector of the input transform."""

_INVERSE_9 = pow(9, -1, 1 << 32)
"""9⁻¹ modulo 2^32; below 2^31."""


def is_legal(ctx: Context, form: Form) -> bool:
    """3×3, stride 1, one group, channels-last with a halo; small enough inputs and weights, proved here."""
    node, requant = ctx.anchor, ctx.kernel.epilogue
    if node.op != "conv2d" or requant is None or not per_channel(ctx):
        return False
    if input_offset(ctx.isa):
        raise InternalError("the transform shifts its results itself", node=node.name)
    w, attrs = ctx.const(node, "w"), node.attrs
    plain = w.shape[2:] == (3, 3) and attrs.ints("stride") == attrs.ints("dilation") == (1, 1)
    if not plain or attrs.int("groups") != 1:
        return False
    layout, out = ctx.layout(node.inputs[0]), ctx.out_layout
    padded = holds_padding(layout, attrs.ints("pad"), attrs.int("pad_value"))
    last = all(ctx.layout(v).channels_last for v in ctx.kernel.inputs) and out.channels_last
    if not (padded and last) or layout.dtype == "i32" or layout.pixel < _width(w.shape[1]):
        return False
    highest = int_range(layout.dtype)[1]
    if highest > form.largest_input or int(np.abs(winograd_transform(w, form.m)).max()) > form.largest_weight:
        return False
    small = accumulator_bound(ctx, node) < form.limit
    return small and choose_scale(ctx, requant, node.name, form.anchor_bits) is not None


def _width(channels: int) -> int:
    """Input channels of a transformed pixel."""
    return -(-channels // 16) * 16


@dataclass(frozen=True, slots=True)
class _Part:
    """`count` groups of `size` blocks from block `start` on; with `exact`, so many channels of the block are stored."""

    start: int
    count: int
    size: int
    exact: int | None


class Winograd:
    """The generator: strips of tiles; each is transformed, multiplied position by position, and transformed back.

    Threads share nothing that one of them has computed: each transforms the inputs it needs.

    Attributes:
        tiles, size: all tiles, and those of a chunk.
        strip: chunks that are transformed before they are multiplied, at most.
        inputs: transformed inputs, [slots, positions, size, width]; a slot holds a chunk of one thread.
        stride: elements of `weights` from one block to the next.
        reuse: register tiles that use weights in turn while these stay in the first cache.
    """

    reuse = 4

    def __init__(self, ctx: Context, form: Form) -> None:
        node = ctx.anchor
        self.form = form
        self.positions = form.alpha * form.alpha
        self.ctx, self.b, self.isa, self.lanes = ctx, ctx.b, ctx.isa, ctx.isa.lanes
        w = ctx.const(node, "w")
        self.source = ctx.stored(node.inputs[0])
        layout, out = self.source.layout, ctx.out_layout
        self.width = _width(w.shape[1])
        self.steps = self.width // form.step
        self.blocks = -(-w.shape[0] // self.lanes)
        last = w.shape[0] - (self.blocks - 1) * self.lanes
        self.exact = last if self.blocks * self.lanes > out.pixel else None
        self.down, self.across = -(-out.shape[1] // form.m), -(-out.shape[2] // form.m)
        self.tiles = self.down * self.across
        self.shift = (layout.halo[0] - node.attrs.ints("pad")[0], layout.halo[1] - node.attrs.ints("pad")[1])
        # Signed dot products want what cannot be negative shifted down, others everything else shifted up.
        self.signed = isinstance(ctx.isa, SignedInputs)
        weights = self._pack_weights(node.const("w"))
        self.stride, self.weight_bytes = weights.array.size // self.blocks, weights.array.nbytes
        self.weights, self.start = ctx.constant(weights), ctx.constant(self._pack_start(node.const("w")))
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name, form.anchor_bits)

    def _pack_weights(self, weights: str | None) -> Constant:
        """[blocks, …], all that a block's products read."""
        form, sizes = self.form, {"lanes": self.lanes, "width": self.width}
        return self.ctx.pack("winograd_weights", weights, m=form.m, **sizes, dtype=form.weights)

    def _pack_start(self, weights: str | None) -> Constant:
        bias, lanes = self.ctx.anchor.const("b"), self.lanes
        return self.ctx.pack("winograd_start", weights, bias, m=self.form.m, lanes=lanes, signed=self.signed)

    def _tile(self) -> Tile:
        # The products of all positions nearly fit the first cache.
        most = max(4, _PRODUCT_BYTES // (self.positions * self.lanes * 4))
        return choose_tile(self.isa, self.blocks, 1, self.tiles, self.steps, self.blocks, most)

    def emit(self) -> Emitted:
        ctx, b, size = self.ctx, self.b, np.dtype(self.form.dtype).itemsize
        tile = self._tile()
        self.cols = tile.cols
        by_blocks = self.weight_bytes > _SHARED_WEIGHTS and self.blocks > tile.blocks
        by_blocks = by_blocks and self.tiles * self.positions * self.width * size <= STRIP_BYTES
        # Weights that are too many for the near caches serve several register tiles before the next position's.
        self.size = min(self.tiles, self.cols * self.reuse) if by_blocks else self.cols
        chunks, chunk = -(-self.tiles // self.size), self.positions * self.size * self.width
        whole = self.blocks - (self.exact is not None)
        parts = [_Part(*span, None) for span in spans(whole, tile.blocks)]
        if self.exact is not None:
            parts.append(_Part(whole, 1, 1, self.exact))
        groups = sum(part.count for part in parts)
        self.strip = chunks if by_blocks else min(chunks, max(1, STRIP_BYTES // (chunk * size)))
        operations = self.positions * self.tiles * self.blocks * self.lanes * self.width
        if by_blocks:
            # Each thread transforms all inputs, and reads no weights but its own.
            tasks = min(groups, _TASKS, max(2, 2 * STRIP_BYTES // (chunks * chunk * size)))
            self.inputs = ctx.scratch(self.form.dtype, tasks * chunks * chunk)
            with ctx.share(operations, tasks) as (first, count):
                own = self._range(first, count, tasks, groups)
                self._strip(parts, own, const(0), const(chunks), b.let(first * chunks))
            fill_halo(ctx)
        else:
            # Each thread reads all weights, and transforms no inputs but its own.
            slots = min(chunks, 2 * self.strip)
            self.inputs = ctx.scratch(self.form.dtype, slots * chunk)
            with ctx.share(operations, slots) as (first, count):
                start, end = self._range(first, count, slots, chunks)
                most = b.let(tir.max(tir.min(count, const(self.strip)), const(1)))
                with b.loop(b.let(tir.truncdiv(end - start + most - 1, most))) as i:
                    begin = b.let(start + i * most)
                    here = b.let(tir.min(end - begin, most))
                    self._strip(parts, (const(0), const(groups)), begin, here, first)
                fill_halo(ctx, (self._row_of(start), self._row_of(end)))
        return ctx.finish()

    def _row_of(self, chunk: Expr) -> Expr:
        """The first row of outputs whose first tile is in a chunk or behind it."""
        done = tir.min(chunk * self.size, const(self.tiles)) + (self.across - 1)
        row = tir.truncdiv(done, const(self.across)) * self.form.m
        return self.b.let(tir.min(row, const(self.ctx.out_layout.shape[1])))

    def _range(self, first: Expr, count: Expr, units: int, items: int) -> tuple[Expr, Expr]:
        """(start, end) of the items that so many units hold."""
        start, end = (tir.truncdiv(at * items, const(units)) for at in (first, first + count))
        return self.b.let(start), self.b.let(end)

    def _strip(self, parts: Sequence[_Part], groups: tuple[Expr, Expr], first: Expr, chunks: Expr, slot: Expr) -> None:
        """Some chunks, transformed into `slot` and behind; then every group of blocks reads its weights once."""
        b, done, all_chunks = self.b, 0, -(-self.tiles // self.size)
        base = b.let(first * self.size)
        with b.loop(b.let(tir.min(chunks * self.size, self.tiles - base))) as t:
            self._transform_inputs(base, t, slot)
        for part in parts:
            start = b.let(tir.max(groups[0] - done, const(0)))
            count = b.let(tir.max(tir.min(groups[1] - done, const(part.count)) - start, const(0)))
            with b.loop(count) as j, b.loop(chunks) as i:
                block, unit = b.let((start + j) * part.size + part.start), b.let(first + i)
                turn = (i, max(1, self.strip // 2))
                for left, full, size in spans(self.tiles, self.size):
                    inside = unit < full if left == 0 else unit >= all_chunks - 1
                    with nullcontext() if self.tiles % self.size == 0 or all_chunks == 1 else b.when(inside):
                        self._chunk(Tile(part.size, 1, size), block, (unit, b.let(slot + i)), turn, part.exact)
            done += part.count

    def _chunk(
        self, tile: Tile, block: Expr, place: tuple[Expr, Expr], turn: tuple[Expr, int], exact: int | None
    ) -> None:
        """A chunk by some blocks; `place`: its number and its slot; `turn`: as in `_plan_prefetch`."""
        b, (unit, slot), (number, turns) = self.b, place, turn
        form, step = self.form, tile.cols * tile.blocks
        # Every row of positions is transformed back while its products are near.
        products = b.local(vec("int32", self.lanes), form.alpha * step)
        half = b.local(vec("int32", self.lanes), form.alpha * form.m * step)
        pieces = -(-tile.cols // self.cols)
        with b.loop(form.alpha) as row:
            with b.loop(form.alpha) as column:
                position = b.let(row * form.alpha + column)
                inputs = b.let((slot * self.positions + position) * self.size)
                for left, count, cols in spans(tile.cols, self.cols):
                    with b.loop(count) as i:
                        first = b.let(i * cols + left)
                        turn_now = number * pieces + i + left // self.cols
                        ahead = self._plan_prefetch(tile.blocks, turn_now, turns * pieces)
                        into = b.let((column * tile.cols + first) * tile.blocks)
                        x0 = b.let((inputs + first) * self.width)
                        self._multiply(Tile(tile.blocks, 1, cols), products, block, position, (x0, into), ahead)
            with b.loop(step) as t:
                found = form.outputs([b.let(b.load(products, c * step + t)) for c in range(form.alpha)])
                for c, value in enumerate(found):
                    b.store(half, (row * form.m + c) * step + t, value)
        self._transform_outputs(tile, half, block, b.let(unit * self.size), exact)

    def _plan_prefetch(self, size: int, number: Expr, turns: int) -> list[Expr]:
        """As in the direct convolution: the weights of the next blocks, spread over the turns of these."""
        each = -(-size // turns)
        if self.blocks <= size:
            return []
        first = tir.min(number * each, const(size - each)) + size
        return [self.b.let((first + q) * self.stride) for q in range(each)]

    def _transform_inputs(self, base: Expr, t: Expr, slot: Expr) -> None:
        """[positions, size, width] from the pixels under tile t of a strip; modulo 2^8 or 2^16."""
        b, layout = self.b, self.source.layout
        row_bytes = layout.cols * layout.pixel
        form, alpha = self.form, self.form.alpha
        top = b.let((base + t) // self.across * form.m + self.shift[0])
        left = b.let((base + t) % self.across * form.m + self.shift[1])
        # The last rows and columns of a tile that sticks out feed only outputs that are not stored.
        rows = [b.let(tir.min(top + i, const(layout.rows - 1)) * row_bytes) for i in range(alpha)]
        cols = [b.let(tir.min(left + i, const(layout.cols - 1)) * layout.pixel) for i in range(alpha)]
        first = b.let(((slot + t // self.size) * (self.positions * self.size) + t % self.size) * self.width)
        done = 0
        for lanes in (64, 32, 16):
            count = (self.width - done) // lanes
            if not count or lanes * np.dtype(form.dtype).itemsize > _WIDEST or (lanes > 16 and self.lanes < 8):
                continue
            with b.loop(count) as i:
                channel = b.let(i * lanes + done)
                self._transform_pixels([row + channel for row in rows], cols, b.let(first + channel), lanes)
            done += count * lanes

    def _transform_pixels(self, rows: list[Expr], cols: list[Expr], first: Expr, lanes: int) -> None:
        """The transformed tile of `lanes` channels, modulo 2^8 or 2^16."""
        b, form, wide = self.b, self.form, vec(self.form.dtype, lanes)
        columns = []
        for col in cols:
            pixels = [b.let(cast(wide, b.load(self.source.buffer, row + col, lanes))) for row in rows]
            columns.append([b.let(v) for v in form.inputs(pixels)])
        for r in range(form.alpha):
            for c, value in enumerate(form.inputs([column[r] for column in columns])):
                offset = form.dtype == "uint8" and ((r, c) == (1, 1)) == self.signed
                index = (r * form.alpha + c) * (self.size * self.width) + first
                b.store(self.inputs, index, value + const(WINOGRAD_OFFSET, wide) if offset else value)

    def _multiply(
        self, tile: Tile, products: Expr, block: Expr, position: Expr, place: tuple[Expr, Expr], ahead: list[Expr]
    ) -> None:
        """The products of one position, vectors [columns, tiles, blocks]; `place`: of their inputs, and their own."""
        b, wide, (x0, into) = self.b, vec("int32", self.lanes), place
        accs = [[b.local(wide) for _ in range(tile.cols)] for _ in range(tile.blocks)]
        for g, group in enumerate(accs):
            index = (position * self.blocks + block + g) * self.lanes
            start = b.let(b.load(self.start, index, self.lanes))
            for acc in group:
                b.store(acc, 0, start)
        vector = self.lanes * self.form.step
        w0 = b.let(block * self.stride + position * (self.steps * vector))
        unroll = unroll_of(tile, self.steps)
        with b.loop(self.ctx.opaque(self.steps // unroll)) as d:
            for u in range(unroll):
                step = d * unroll + u
                for far in ahead:
                    b.prefetch(self.weights, w0 + step * vector + far)
                for g in range(tile.blocks if self.size == self.cols else 0):
                    # The next position's; where several tiles use these weights, they come from farther away.
                    b.prefetch(self.weights, w0 + step * vector + g * self.stride + self.steps * vector)
                ws = [
                    self._weight_operand(b.load(self.weights, w0 + step * vector + g * self.stride, vector))
                    for g in range(tile.blocks)
                ]
                for t in range(tile.cols):
                    x = self._input_operand(x0 + step * self.form.step + t * self.width)
                    for g in range(tile.blocks):
                        self._add_product(accs[g][t], x, ws[g])
        for g, group in enumerate(accs):
            for t, acc in enumerate(group):
                b.store(products, into + (t * tile.blocks + g), b.load(acc, 0))

    @property
    def _bytewise(self) -> bool:
        """Whether a dot product is of 4 bytes, not of 2 int16."""
        return self.form.step == STEP

    def _weight_operand(self, weights: Expr) -> Operand:
        """A step's weights of a block."""
        loaded = self.b.let(reinterpret(vec("int32", self.lanes), weights))
        return tuple(self.b.let(v) for v in self.isa.prepare_w(loaded)) if self._bytewise else (loaded,)

    def _input_operand(self, at: Expr) -> Operand:
        """A step's transformed inputs of a tile, for every output channel."""
        few = reinterpret("int32", self.b.load(self.inputs, at, self.form.step))
        spread = self.b.let(broadcast(few, self.lanes))
        return tuple(self.b.let(v) for v in self.isa.prepare_x(spread)) if self._bytewise else (spread,)

    def _add_product(self, acc: Any, x: Operand, w: Operand) -> None:
        dot = self.isa.dot4 if self._bytewise else self.isa.dot2
        self.b.store(acc, 0, dot(self.b.load(acc, 0), x, w))

    def _transform_outputs(self, tile: Tile, half: Expr, block: Expr, base: Expr, exact: int | None) -> None:
        """The m×m requantized outputs of every tile and block, from rows that are transformed already."""
        b, form, alpha = self.b, self.form, self.form.alpha
        with b.loop(tile.cols) as t:
            row = b.let((base + t) // self.across * form.m)
            col = b.let((base + t) % self.across * form.m)
            with b.loop(tile.blocks) as g:
                channel = b.let((block + g) * self.lanes)
                first = b.let(t * tile.blocks + g)
                step = tile.cols * tile.blocks
                found = []
                for c in range(form.m):
                    indices = [first + (r * form.m + c) * step for r in range(alpha)]
                    column = form.outputs([b.let(b.load(half, i)) for i in indices])
                    found += [((r, c), b.let(self._finish(acc))) for r, acc in enumerate(column)]
                for four in (found[i : i + 4] for i in range(0, len(found), 4)):
                    self._store(four, channel, row, col, exact)

    def _store(
        self, four: list[tuple[tuple[int, int], Expr]], channel: Expr, row: Expr, col: Expr, exact: int | None
    ) -> None:
        """Requantize and store four outputs, packed into one vector of bytes where they fill it."""
        b, m, (_, height, width) = self.b, self.form.m, self.ctx.out_layout.shape
        packed = self.epilogue.narrows and exact is None
        values: list[Expr] = []
        if packed:
            late = []
            for (r, c), acc in four:
                # What an output outside of the image would add is never stored, but must not be read.
                y = tir.min(row + r, const(height - 1)) if r and height % m else row + r
                x = tir.min(col + c, const(width - 1)) if c and width % m else col + c
                late.append(self.epilogue.late(acc, (channel, y, x), self.lanes))
            whole = b.let(in_order(narrowed(self.isa, late)))
            values = [shuffle(whole, whole, list(range(i * self.lanes, (i + 1) * self.lanes))) for i in range(4)]
        for i, ((r, c), acc) in enumerate(four):
            inside = [row + r < height] if r and height % m else []
            inside += [col + c < width] if c and width % m else []
            coords = (channel, row + r, col + c)
            with b.when(tir.all(*inside)) if inside else nullcontext():
                value = values[i] if packed else self.epilogue.value(acc, coords, self.lanes)
                store(self.ctx, coords, value, exact)

    def _finish(self, acc: Expr) -> Expr:
        """From the transformed sum to 2^anchor_bits times the convolution."""
        if self.form.m == 2:
            return acc
        return acc * const(_INVERSE_9, vec("int32", self.lanes))


def emit(ctx: Context, form: Form) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal` holds."""
    return Winograd(ctx, form).emit()
