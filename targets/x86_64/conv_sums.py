"""Direct convolution by `vpmaddubsw` whose sums of two products are added up in 16 bits as long as they provably fit.

Every step then takes two instructions for 32 multiply-adds instead of three, and widening to 32 bits comes once in a
while: at 4 bits behind hundreds of products, at 4-bit weights and 8-bit inputs behind some dozens.

Weights of 8 bits are multiplied in two halves of 4 bits, which is four instructions.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from qcompile.ir import Array, int_range
from targets._tvm.builder import Expr, const, reinterpret, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import Operand
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.packing import STEP
from targets.x86_64.isa import INT16_MAX, Avx2Saturating


def longest_window(packed: Array, highest: int) -> int:
    """The most consecutive steps whose sums fit int16: a divisor of a run's steps, or all steps of a block.

    Inputs are never negative, so no partial sum is beyond what the weights of one sign can reach.

    Args:
        packed: int8[blocks, KH, runs, steps, 1, lanes, 4]; neighbours are added.
        highest: largest input; two neighbours alone fit.
    """
    pairs = packed.astype(np.int64).reshape(*packed.shape[:4], -1, 2)
    reach = highest * np.stack([np.maximum(pairs, 0).sum(axis=-1), np.maximum(-pairs, 0).sum(axis=-1)])
    blocks, steps = reach.shape[1], reach.shape[4]
    if reach.reshape(2, blocks, -1, reach.shape[5]).sum(axis=2).max() <= INT16_MAX:
        return reach[0, 0, ..., 0].size
    fitting = [1]
    for size in (n for n in range(2, steps + 1) if steps % n == 0):
        sums = reach.reshape(*reach.shape[:4], steps // size, size, -1).sum(axis=5)
        fitting += [size] if sums.max() <= INT16_MAX else []
    return max(fitting)


class SumConv(DirectConv):
    """The generator; `ctx.isa` is `Avx2Saturating`.

    An accumulator of the inner loops is one sum of 16 bits for each part of the weights.

    Attributes:
        window: steps that are added up in 16 bits.
        parts: of the weights; number i counts 16^i times.
    """

    def _pack(self, merged: bool) -> Constant:
        return self._packed([super()._pack(merged)])

    def _packed(self, parts: list[Constant]) -> Constant:
        highest = int_range(self.ctx.layout(self.ctx.anchor.inputs[0]).dtype)[1]
        self.window = min(longest_window(part.array, highest) for part in parts)
        self.parts = [self.ctx.constant(part) for part in parts[1:]]
        return parts[0]

    def _sums(self, tile: Tile) -> list[list[list[Expr]]]:
        """Zeros by block, pixel and part."""
        narrow = vec("int16", 2 * self.lanes)
        parts = range(1 + len(self.parts))
        sums = [[[self.b.local(narrow) for _ in parts] for _ in range(tile.pixels)] for _ in range(tile.blocks)]
        for each in (each for group in sums for pixel in group for each in pixel):
            self.b.store(each, 0, const(0, narrow))
        return sums

    def _widen(self, accs: list[list[Expr]], sums: list[list[list[Expr]]]) -> None:
        """Add the sums to the accumulators."""
        isa, b, wide = cast(Avx2Saturating, self.isa), self.b, vec("int32", self.lanes)
        for group, narrow in zip(accs, sums, strict=True):
            for acc, pixel in zip(group, narrow, strict=True):
                for i, each in enumerate(pixel):
                    found = isa.widened(b.load(each, 0))
                    b.store(acc, 0, b.load(acc, 0) + (found << const(4 * i, wide) if i else found))

    def _tile(self, tile: Tile, block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        self._whole = self._sums(tile) if self.window > self.run_steps else None
        super()._tile(tile, block, row, col, exact)

    def _run(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr) -> None:
        if self._whole is not None:
            self._steps(tile, self._whole, inputs, weights, self.run_steps)
            return
        size = self.window
        with self.b.loop(self.run_steps // size) as i:
            sums = self._sums(tile)
            at = self.b.let(i * size)
            self._steps(tile, sums, inputs + at * STEP, weights + at * (self.lanes * STEP), size)
            self._widen(accs, sums)

    def _finish(self, tile: Tile, accs: list[list[Expr]], block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        if self._whole is not None:
            self._widen(accs, self._whole)
        super()._finish(tile, accs, block, row, col, exact)

    def _operand(self, index: Expr) -> Operand:
        b, wide, size = self.b, vec("int32", self.lanes), self.lanes * STEP
        return tuple(b.let(reinterpret(wide, b.load(part, index, size))) for part in (self.weights, *self.parts))

    def _dot(self, acc: Any, x: Operand, w: Operand) -> None:
        for each, part in zip(acc, w, strict=True):
            self.b.store(each, 0, self.b.load(each, 0) + cast(Avx2Saturating, self.isa).pairs(x[0], part))


class HalfConv(SumConv):
    """The same for weights of any size: their lower and upper four bits."""

    def _pack(self, merged: bool) -> Constant:
        weights, shape = self.ctx.anchor.const("w"), {"groups": self.groups, "lanes": self.lanes, "merged": merged}
        return self._packed([self.ctx.pack("direct_half", weights, high=high, **shape) for high in (False, True)])


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds and two neighbouring products fit int16."""
    return SumConv(ctx).emit()


def emit_halves(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return HalfConv(ctx).emit()
