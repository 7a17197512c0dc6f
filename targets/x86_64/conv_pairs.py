"""Direct convolution of full 8-bit weights by `vpmaddubsw`, which saturates sums of two products at 16 bits.

Inputs up to 255 times two weights of one sign fit only where the weights' magnitudes add up to at most 128.  Of every
other pair the excess is taken away from its second weight, so that no sum can saturate, and multiplied in a few steps
more: lists of those 4-byte steps whose remainders are not all zero, one list for every block of output channels.
Weights that lie around zero exceed rarely: one pair in a hundred of a normal distribution.
"""

from __future__ import annotations

from typing import Any

from qcompile.ir import int_range
from targets._tvm.builder import Expr, broadcast, reinterpret, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.packing import STEP
from targets.x86_64.isa import INT16_MAX


class PairConv(DirectConv):
    """The generator; `ctx.isa` is `Avx2Saturating`."""

    def _pack(self, merged: bool) -> Constant:
        ctx, weights = self.ctx, self.ctx.anchor.const("w")
        highest = int_range(ctx.layout(ctx.anchor.inputs[0]).dtype)[1]
        shape: dict[str, Any] = {"groups": self.groups, "lanes": self.lanes, "merged": merged}
        shape["most"] = INT16_MAX // highest
        strides = [self.dilation[0] * self.row, self.dilation[1] * self.pixel]
        self.rests = ctx.constant(ctx.pack("pair_rests", weights, **shape))
        self.offsets = ctx.constant(ctx.pack("pair_offsets", weights, **shape, strides=strides))
        self.starts = ctx.constant(ctx.pack("pair_starts", weights, **shape))
        return ctx.pack("pair_heads", weights, **shape)

    def _finish(self, tile: Tile, accs: list[list[Expr]], block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        b, isa, size = self.b, self.isa, self.lanes * STEP
        x0 = row * (self.stride[0] * self.row) + col * (self.stride[1] * self.pixel)
        x0 = b.let(x0 + self._first_channel(block) + self.geometry.origin)
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
        super()._finish(tile, accs, block, row, col, exact)


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return PairConv(ctx).emit()
