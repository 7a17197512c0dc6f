"""Direct convolution of full 8-bit weights by `vpmaddubsw`, which saturates sums of two products at 16 bits.

What of a pair of weights does not fit is multiplied in a few steps more (`packing_split`): lists of those 4-byte steps
whose rests are not all zero, one list for every block of output channels.

`PairConv` pairs neighbours in memory.  Weights that lie around zero exceed rarely, one pair in a hundred of a normal
distribution; but where few inputs spread the weights, half of all steps have a rest in one of their 16 pairs.

`WindowConv` brings the weights of every output channel into an order of their own, a shuffle of input bytes for every
step, and has hardly any rests.  Half a span of inputs, two steps, is a window: where the four products of a pair of
pairs fit 16 bits together in all lanes, they are added there, and widened once.
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
    """

    step, span = WINDOW, SPAN

    @property
    def windows(self) -> int:
        """Windows of a block."""
        return self.steps * STEP // WINDOW

    @property
    def block_bytes(self) -> int:
        """Weights and shuffles."""
        return 2 * super().block_bytes

    def _shared_blocks(self) -> int:
        return 1

    def _heads(self) -> Constant:
        self.table = self.ctx.constant(self._packed("span_table", strides=self.strides))
        return self._packed("span_weights")

    def _tile(self, tile: Tile, block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        b, accs, x0 = self.b, self._accumulators(tile, block), self._first_input(block, row, col)
        entry = b.let(block * (1 + self.windows))
        fitting, w0 = b.let(b.load(self.table, entry)), b.let(block * self.block_bytes)
        for start, count, sums in ((const(0), fitting, True), (fitting, b.let(self.windows - fitting), False)):
            with b.loop(count) as i:
                window = b.let(start + i)
                inputs = b.let(x0 + b.load(self.table, entry + 1 + window))
                self._window(tile, accs[0], inputs, b.let(w0 + window * (4 * self.lanes * STEP)), sums)
        self._finish(tile, accs, block, row, col, exact)

    def _window(self, tile: Tile, accs: list[Expr], inputs: Expr, weights: Expr, sums: bool) -> None:
        """One window into the accumulators of all pixels; with `sums` its steps are added in 16 bits."""
        b, isa, size, wide = self.b, cast(Avx2Saturating, self.isa), self.lanes * STEP, vec("int32", self.lanes)
        for ahead in (a + line for a in self._ahead for line in (0, 2 * size)):
            b.prefetch(self.weights, weights + ahead)
        order, w, more_order, more = (
            b.let(reinterpret(wide, b.load(self.weights, weights + i * size, size))) for i in range(4)
        )
        for p, acc in enumerate(accs):
            span = b.let(b.load(self.source.buffer, inputs + self._offset(tile, p), SPAN))
            x = b.let(shuffle(span, span, list(range(SPAN)) * (size // SPAN)))
            pairs = [isa.pairs(isa.shuffled(x, order), w), isa.pairs(isa.shuffled(x, more_order), more)]
            if sums:
                b.store(acc, 0, b.load(acc, 0) + isa.widened(pairs[0] + pairs[1]))
            else:
                for each in pairs:
                    b.store(acc, 0, b.load(acc, 0) + isa.widened(each))


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return PairConv(ctx).emit()


def emit_windows(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return WindowConv(ctx).emit()
