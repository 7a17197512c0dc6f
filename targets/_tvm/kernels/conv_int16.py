"""The direct convolution of cores that multiply bytes into int16: as many products as provably fit stay there.

Two 8-bit products fit int16 and are then added to int32: three instructions for 16 multiply-adds.  Fewer bits
leave room for more: at 4 bits hundreds of products are summed before, and two instructions do.  How many is
proved from the weights themselves.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from qcompile.ir import int_range
from targets._tvm.builder import Expr, const
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import input_offset
from targets._tvm.kernels.conv_lanes import VECTOR, LaneConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.neon import Int16
from targets._tvm.packing import STEP

_INT16_MAX = 32767
_STEPS = VECTOR // STEP


def largest_input(ctx: Context) -> int:
    """Of the magnitudes that are multiplied."""
    highest, offset = int_range(ctx.layout(ctx.anchor.inputs[0]).dtype)[1], input_offset(ctx.isa)
    return max(offset, highest - offset)


def window(ctx: Context, packed: Constant) -> int:
    """The most consecutive steps whose products fit int16: 1, 2, or four times a divisor of a run's chunks; 0 if
    not even those of one step do.

    Args:
        packed: int8[blocks, KH, runs, steps, 2, lanes, 2]; the two halves of a step are added.
    """
    reach = np.abs(packed.array.astype(np.int64)).sum(axis=4) * largest_input(ctx)
    if reach.max() > _INT16_MAX:
        return 0
    chunks = reach.shape[3] // _STEPS
    found = 1
    for size in (2, *(_STEPS * c for c in range(1, chunks + 1) if chunks % c == 0)):
        whole = reach[:, :, :, : chunks * _STEPS]
        sums = whole.reshape(*whole.shape[:3], chunks * _STEPS // size, size, *whole.shape[4:]).sum(axis=4)
        if chunks and sums.max() <= _INT16_MAX:
            found = size
    return found


class Int16Conv(LaneConv):
    """The generator."""

    @property
    def int16(self) -> Int16:
        return cast(Int16, self.isa)

    def _pack(self, merged: bool) -> Constant:
        packed = super()._pack(merged)
        self.window = window(self.ctx, packed)
        return packed

    def _chunks(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr, chunks: int) -> None:
        b = self.b
        size = max(self.window // _STEPS, 1)
        with b.loop(chunks // size) as i:
            if size == 1:
                self._window(tile, accs, inputs + i * VECTOR, weights + i * (_STEPS * VECTOR), None)
                return
            totals = [[b.local("int16x8") for _ in group] for group in accs]
            for total in (t for group in totals for t in group):
                b.store(total, 0, const(0, "int16x8"))
            with b.loop(size) as j:
                d = b.let(i * size + j)
                self._window(tile, accs, inputs + d * VECTOR, weights + d * (_STEPS * VECTOR), totals)
            for g, group in enumerate(totals):
                for p, total in enumerate(group):
                    b.store(accs[g][p], 0, self.int16.flush(b.load(accs[g][p], 0), b.load(total, 0)))

    def _window(
        self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr, totals: list[list[Expr]] | None
    ) -> None:
        """One chunk: its products into `totals`, or through windows within the chunk into the accumulators."""
        b, isa = self.b, self.int16
        size = _STEPS if totals else min(self.window, _STEPS)
        xs = self._vectors(tile, inputs)
        for first in range(0, _STEPS, size):
            ws = [self._weights(tile, weights + u * VECTOR) for u in range(first, first + size)]
            for p, x in enumerate(xs):
                lanes = [tuple(b.let(v) for v in isa.lane(x, first + u)) for u in range(size)]
                for g in range(tile.blocks):
                    total = b.load(totals[g][p], 0) if totals else None
                    for u in range(size):
                        total = b.let(isa.products(total, lanes[u], ws[u][g]))
                    if totals:
                        b.store(totals[g][p], 0, total)
                    else:
                        b.store(accs[g][p], 0, isa.flush(b.load(accs[g][p], 0), total))


def pairs_fit(ctx: Context) -> bool:
    """Whether two products always fit int16."""
    return 2 * largest_input(ctx) * int(np.abs(ctx.const(ctx.anchor, "w").astype(np.int64)).max()) <= _INT16_MAX


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` and `pairs_fit` hold."""
    return Int16Conv(ctx).emit()
