"""Direct convolution of full 8-bit weights by `vpmaddubsw`, which saturates sums of two products at 16 bits.

What of a pair of weights does not fit is multiplied in a few steps more (`packing_split`): lists of those 4-byte steps
whose rests are not all zero, one list for every block of output channels.

`PairConv` pairs neighbours in memory.  Weights that lie around zero exceed rarely, one pair in a hundred of a normal
distribution; but where few inputs spread the weights, half of all steps have a rest in one of their 16 pairs.

`WindowConv` brings the weights of every output channel into an order of their own, a shuffle of input bytes for every
step, and has hardly any rests.  Half a span of inputs, two steps, is a window: where the four products of every quad
fit 16 bits together in all lanes, they are added there, and widened once.  Where both windows of a span fit, its inputs
are read once for both.
"""

from __future__ import annotations

from typing import Any, cast

from qcompile.ir import int_range
from targets._tvm.builder import Expr, broadcast, const, reinterpret, shuffle, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.packing import STEP
from targets._tvm.packing_split import SPAN, WINDOW
from targets.x86_64.isa import INT16_MAX, Avx2Saturating

_LINE = 64
"""Bytes of a line of the caches."""

_TURNS = 4
"""Tiles that share the next block's weights.  Each asking for all of them costs 3 % of the time where weights are near
anyway; with fewer lines each, a second thread, which computes other tiles, would see too few."""


class PairConv(DirectConv):
    """The generator; `ctx.isa` is `Avx2Saturating`.

    Attributes:
        span: as in `packing_split`.
        rests: weights of the steps in the lists; None where there are none.
    """

    span = 2

    def _pack(self, merged: bool) -> Constant:
        ctx = self.ctx
        highest = int_range(ctx.layout(ctx.anchor.inputs[0]).dtype)[1]
        self.shape: dict[str, Any] = {"groups": self.groups, "lanes": self.lanes, "merged": merged}
        self.shape["most"] = INT16_MAX // highest
        self.strides = [self.dilation[0] * self.row, self.dilation[1] * self.pixel]
        rests = self._packed("pair_rests", span=self.span)
        self.rests = ctx.constant(rests) if len(rests.array) > 1 else None
        if self.rests is not None:
            self.offsets = ctx.constant(self._packed("pair_offsets", span=self.span, strides=self.strides))
            self.starts = ctx.constant(self._packed("pair_starts", span=self.span))
        return self._heads()

    def _packed(self, recipe: str, **more: Any) -> Constant:
        return self.ctx.pack(recipe, self.ctx.anchor.const("w"), **self.shape, **more)

    def _heads(self) -> Constant:
        return self._packed("pair_heads", span=self.span)

    def _finish(self, tile: Tile, accs: list[list[Expr]], block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        if self.rests is not None:
            self._add_rests(tile, accs, block, self._first_input(block, row, col))
        super()._finish(tile, accs, block, row, col, exact)

    def _add_rests(self, tile: Tile, accs: list[list[Expr]], block: Expr, x0: Expr) -> None:
        b, isa, size = self.b, self.isa, self.lanes * STEP
        for g, group in enumerate(accs):
            first = b.let(b.load(self.starts, block + g))
            with b.loop(b.let(b.load(self.starts, block + g + 1) - first)) as i:
                one = b.let(first + i)
                x = b.let(x0 + b.load(self.offsets, one))
                loaded = reinterpret(vec("int32", self.lanes), b.load(self.rests, one * size, size))
                w = tuple(b.let(v) for v in isa.prepare_w(b.let(loaded)))
                for p, acc in enumerate(group):
                    four = reinterpret("int32", b.load(self.source.buffer, x + self._offset(tile, p), STEP))
                    spread = tuple(b.let(v) for v in isa.prepare_x(b.let(broadcast(four, self.lanes))))
                    b.store(acc, 0, isa.dot4(b.load(acc, 0), spread, w))


class WindowConv(PairConv):
    """The generator; `ctx.isa` is `Avx2Saturating`.

    Every block has an order of its own, so a tile is of one block.

    Attributes:
        window_bytes: weights and shuffles of a window.
    """

    step, span = WINDOW, SPAN

    @property
    def window_bytes(self) -> int:
        return 2 * WINDOW * self.lanes

    @property
    def windows(self) -> int:
        """Windows of a block."""
        return self.steps * STEP // WINDOW

    @property
    def block_bytes(self) -> int:
        """Weights and shuffles."""
        return self.windows * self.window_bytes

    def _shared_blocks(self) -> int:
        return 1

    def _plan_prefetch(self, size: int, number: Expr, tiles: int) -> None:
        """All lines of the next block with every tile; where there are many, a quarter of them with each in turn."""
        self._turns = _TURNS if tiles >= 2 * _TURNS else 1
        part = -(-self.block_bytes // self._turns // _LINE) * _LINE
        far = self.far and self.blocks > size
        self._ahead = [self.b.let(self.block_bytes + number % self._turns * part)] if far else []

    def _prefetch(self, block: Expr, window: Expr, count: int) -> None:
        """What of the next block comes with so many windows of this one."""
        for ahead in self._ahead:
            first = self.b.let(block + ahead + (window * self.window_bytes // self._turns))
            for line in range(0, max(count * self.window_bytes // self._turns, _LINE), _LINE):
                self.b.prefetch(self.weights, first + line)

    def _heads(self) -> Constant:
        self.table = self.ctx.constant(self._packed("window_table", strides=self.strides))
        return self._packed("window_weights")

    def _tile(self, tile: Tile, block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        b, accs, x0 = self.b, self._accumulators(tile, block), self._first_input(block, row, col)
        entry, w0 = b.let(block * (2 + self.windows)), b.let(block * self.block_bytes)
        spans, fitting = b.let(b.load(self.table, entry)), b.let(b.load(self.table, entry + 1))
        places, in_spans = b.let(entry + 2), b.let(spans * 2)
        for first, loops, size, sums in (
            (const(0), spans, 2, True),
            (in_spans, b.let(fitting - in_spans), 1, True),
            (fitting, b.let(self.windows - fitting), 1, False),
        ):
            with b.loop(loops) as i:
                window = b.let(first + i * size)
                inputs = b.let(x0 + b.load(self.table, places + window))
                weights = b.let(w0 + window * self.window_bytes)
                self._prefetch(w0, window, size)
                self._windows(tile, accs[0], inputs, weights, size, sums)
        self._finish(tile, accs, block, row, col, exact)

    def _windows(self, tile: Tile, accs: list[Expr], inputs: Expr, weights: Expr, count: int, sums: bool) -> None:
        """Windows of one span into the accumulators of all pixels; with `sums` their steps are added in 16 bits."""
        b, isa, size, wide = self.b, cast(Avx2Saturating, self.isa), self.lanes * STEP, vec("int32", self.lanes)
        loaded = [b.let(reinterpret(wide, b.load(self.weights, weights + i * size, size))) for i in range(4 * count)]
        for p, acc in enumerate(accs):
            span = b.let(b.load(self.source.buffer, inputs + self._offset(tile, p), SPAN))
            x = b.let(shuffle(span, span, list(range(SPAN)) * (size // SPAN)))
            for order, w, more_order, more in (loaded[i : i + 4] for i in range(0, len(loaded), 4)):
                pairs = [isa.pairs(isa.shuffled(x, order), w), isa.pairs(isa.shuffled(x, more_order), more)]
                for each in [pairs[0] + pairs[1]] if sums else pairs:
                    b.store(acc, 0, b.load(acc, 0) + isa.widened(each))


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return PairConv(ctx).emit()


def emit_windows(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return WindowConv(ctx).emit()
