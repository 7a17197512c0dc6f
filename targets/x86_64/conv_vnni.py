"""Direct convolution for AVX-512 VNNI: `conv_direct` with what pays where a step is one instruction.

A kernel row of few channels ends in the middle of a step: 9 bytes of a 3×3 kernel on 3 channels take 3 steps for 2¼.
What is left of all rows is gathered, byte by byte in the integer units, which have nothing else to do, into steps of
its own: 7 steps instead of 9 there, 37 instead of 42 in a 7×7 kernel.

Tiles of few steps have few accumulators, so that a processor can still see the next tile's products while it
requantizes.
"""

from __future__ import annotations

import functools
from typing import Any

from targets._tvm.builder import Expr, cast, const
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.packing import STEP

_LEAST_SAVED = 0.08
"""Share of the steps from which gathering is worth its loads."""


class VnniConv(DirectConv):
    """The generator; see `DirectConv`."""

    few = 16

    @property
    def left(self) -> int:
        """Bytes of a kernel row that are gathered."""
        return self.run_bytes % STEP if self._gathers else 0

    @property
    def _gathers(self) -> bool:
        if self.runs > 1 or self.kh == 1 or self.ctx.anchor.op != "conv2d":
            return False
        steps = self.kh * -(-self.run_bytes // STEP)
        saved = steps - self.kh * (self.run_bytes // STEP) - -(-self.kh * (self.run_bytes % STEP) // STEP)
        return bool(saved >= _LEAST_SAVED * steps)

    def _count_run_steps(self) -> int:
        return int(self.run_bytes // STEP) if self._gathers else super()._count_run_steps()

    def _count_more_steps(self) -> int:
        return int(-(-self.kh * self.left // STEP))

    def _pack(self, merged: bool) -> Constant:
        if not self._gathers:
            return super()._pack(merged)
        return self.ctx.pack("direct_gathered", self.ctx.anchor.const("w"), lanes=self.lanes)

    def _add_products(self, tile: Tile, accs: list[list[Any]], inputs: Expr, weights: Expr) -> None:
        super()._add_products(tile, accs, inputs, weights)
        b, whole = self.b, self.run_steps * STEP
        size = self.lanes * STEP
        places = [i * self.dilation[0] * self.row + whole + j for i in range(self.kh) for j in range(self.left)]
        for step, first in enumerate(range(0, len(places), STEP)):
            at = weights + (self.kh * self.run_steps + step) * size
            ws = [self._operand(at + g * self.block_bytes) for g in range(tile.blocks)]
            for p in range(tile.pixels):
                found = [
                    cast("int32", b.load(self.source.buffer, inputs + self._offset(tile, p) + place)) << const(8 * k)
                    for k, place in enumerate(places[first : first + STEP])
                ]
                self._add_pixel(accs, p, b.let(functools.reduce(lambda a, b: a | b, found)), ws)


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return VnniConv(ctx).emit()
