"""Depthwise convolution: a thread computes four channels of several pixels by dot products of four taps.

Four words under four taps, each four channels of a pixel, are transposed into four words of four taps of a channel:
a 3×3 window is then three dot products instead of nine products, and where a column of four rows serves two rows of
outputs, every column is transposed once for both (`targets._tvm.kernels.depthwise.Quads`).  Weights, bias and
multipliers are loaded once, 16 bytes at a time; neighbouring threads have neighbouring channels, so that loads and
stores are of consecutive words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx as tir

from targets._tvm.builder import Expr, const
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels import depthwise
from targets._tvm.kernels.conv_direct import geometry_of
from targets._tvm.kernels.depthwise import GROUP, Quads
from targets._tvm.kernels.epilogue import Epilogue
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.packing import STEP, circular_groups
from targets.cuda.block import address, call
from targets.cuda.device import dot4, joined, transposed, word_at

_SEGMENTS = 1
"""16-channel groups side by side in packed parameters: a thread reads four channels of one."""

_BUSY = 1 << 15
"""Threads that keep a small device busy."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Columns of outputs that a thread computes."""

    cols: int

    @property
    def name(self) -> str:
        return f"depthwise-{self.cols}"


TILES = tuple(Tile(cols) for cols in (4, 2, 1))


def legal_tiles(ctx: Context) -> list[Tile]:
    """Those no wider than the image, the widest that keeps a device busy first; none where the kernel is illegal."""
    if not depthwise.is_legal(ctx):
        return []
    _, height, width = ctx.out_layout.shape
    threads = height * width * ctx.out_layout.pixel // STEP
    fitting = [tile for tile in TILES if tile.cols <= width]
    busy = [tile for tile in fitting if threads >= _BUSY * tile.cols]
    return busy + [tile for tile in reversed(fitting) if tile not in busy]


class _Table:
    """A constant of the requant: the four numbers of the thread's channels, in registers; coordinates are (channel,).

    Packed as `segment_table`.
    """

    def __init__(self, ctx: Context, packed: Constant) -> None:
        self._b = ctx.b
        self._scalar = int(packed.array[0]) if packed.array.size == 1 else None
        self._pointer = None if packed.array.size == 1 else ctx.constant(packed)

    def fetch(self, place: Expr) -> None:
        """Load the numbers of the four channels at a place."""
        if self._pointer is not None:
            self._four = self._b.local("int32", STEP)
            source = address(self._b, self._pointer, place * STEP)
            call(self._b, "q_load16", address(self._b, self._four, const(0)), source)

    def at(self, coords: Sequence[Expr], lanes: int) -> Expr:
        (channel,) = coords
        return const(self._scalar) if self._scalar is not None else self._b.load(self._four, channel)


class Depthwise:
    """The generator."""

    def __init__(self, ctx: Context, tile: Tile) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.tile = ctx, ctx.b, tile
        self.geometry = g = geometry_of(ctx)
        self.source, self.out = ctx.stored(node.inputs[0]), ctx.out_layout
        self.groups = self.out.pixel // GROUP
        stride, dilation = (g.stride[0], g.stride[1]), (g.dilation[0], g.dilation[1])
        self.quads = Quads((g.weights.shape[2], g.weights.shape[3]), stride, dilation)
        self.rows = min(self.quads.rows, g.height)
        self.tables: list[_Table] = []
        packed = ctx.pack("quads", node.const("w"), taps=self.quads.taps, groups=self.groups, segments=_SEGMENTS)
        self.weights = ctx.constant(packed)
        bias = node.const("b")
        self.bias = self._table(bias) if bias else None
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name, table=self._table)

    def _table(self, constant: str) -> _Table:
        packed = self.ctx.pack("segment_table", constant, groups=self.groups, segments=_SEGMENTS)
        self.tables.append(_Table(self.ctx, packed))
        return self.tables[-1]

    def emit(self) -> Emitted:
        b, g = self.b, self.geometry
        down, across = -(-g.height // self.rows), -(-g.width // self.tile.cols)
        with b.loop(down) as i, b.loop(across) as j, b.loop(self.out.pixel // STEP) as quad:
            # The last tile of a row or column overlaps the one before it, and stores what is new.
            top = b.let(tir.min(i * self.rows, const(g.height - self.rows)) if g.height % self.rows else i * self.rows)
            left = j * self.tile.cols
            left = b.let(tir.min(left, const(g.width - self.tile.cols)) if g.width % self.tile.cols else left)
            self._tile(top, left, quad, (i, j))
        fill_halo(self.ctx)
        return self.ctx.finish()

    def _tile(self, top: Expr, left: Expr, quad: Expr, number: tuple[Expr, Expr]) -> None:
        b, g, cols = self.b, self.geometry, self.tile.cols
        place = b.let(quad % (GROUP // STEP) * circular_groups(self.groups, _SEGMENTS) + quad // (GROUP // STEP))
        for table in self.tables:
            table.fetch(place)
        weights = [self._weights(v, place) for v in range(len(self.quads.taps))]
        starts = [b.let(self.bias.at((const(c),), 1)) if self.bias else const(0) for c in range(STEP)]
        accs = {(r, t): list(starts) for r in range(self.rows) for t in range(cols)}
        x = b.let(top * (g.stride[0] * g.row) + left * (g.stride[1] * g.pixel) + quad * STEP + g.origin)
        loaded: dict[tuple[int, int], Expr] = {}
        for one in self.quads.plan(self.rows, cols):
            for at in one.offsets:
                if at not in loaded:
                    loaded[at] = b.let(word_at(b, self.source.buffer, x + at[0] * g.row + at[1] * g.pixel))
            taps = transposed(b.let, [loaded[at] for at in one.offsets])
            for r, t, v in one.users:
                for c in range(STEP):
                    accs[r, t][c] = b.let(dot4(accs[r, t][c], taps[c], b.load(weights[v], c)))
        for (r, t), four in accs.items():
            word = b.let(joined(b.let, [self.epilogue.value(acc, (const(c),), 1) for c, acc in enumerate(four)]))
            new = [top + r >= number[0] * self.rows] if g.height % self.rows else []
            new += [left + t >= number[1] * cols] if g.width % cols else []
            to = address(b, self.ctx.output.buffer, self.ctx.output.address((quad * STEP, top + r, left + t)))
            if not new:
                call(b, "q_put", to, word)
                continue
            with b.when(tir.all(*new)):
                call(b, "q_put", to, word)

    def _weights(self, number: int, place: Expr) -> Expr:
        """int32[4]: four taps of each of the thread's channels."""
        b, size = self.b, circular_groups(self.groups, _SEGMENTS) * GROUP * STEP
        four = b.local("int32", STEP)
        call(b, "q_load16", address(b, four, const(0)), address(b, self.weights, place * GROUP + number * size))
        return four


def emit(ctx: Context, tile: Tile) -> Emitted:
    """The kernel of `ctx`, for which `tile` is one of `legal_tiles`."""
    return Depthwise(ctx, tile).emit()
