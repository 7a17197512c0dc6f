"""The direct convolution of 128-bit Arm vectors: 16 input bytes of a pixel in a register serve four steps.

`conv_direct` broadcasts 4 input bytes for every step; here an instruction takes its 4 bytes from a lane.
"""

from __future__ import annotations

from typing import cast

from targets._tvm.builder import Expr, broadcast, reinterpret
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import Operand
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.neon import LaneIsa
from targets._tvm.packing import STEP

VECTOR = 16
"""Bytes of a register."""

_STEPS = VECTOR // STEP


class LaneConv(DirectConv):
    """The generator."""

    held = 1

    @property
    def lane_isa(self) -> LaneIsa:
        return cast(LaneIsa, self.isa)

    def _pack(self, merged: bool) -> Constant:
        weights, split = self.ctx.anchor.const("w"), self.lane_isa.split
        return self.ctx.pack(
            "direct", weights, groups=self.groups, lanes=self.lanes, merged=merged, step=self.step, split=split
        )

    def _run(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr) -> None:
        chunks, rest = divmod(self.run_steps, _STEPS)
        if chunks:
            self._chunks(tile, accs, inputs, weights, chunks)
        for u in range(chunks * _STEPS, chunks * _STEPS + rest):
            ws = self._weights(tile, weights + u * VECTOR)
            for p in range(tile.pixels):
                index = inputs + (self._offset(tile, p) + u * STEP)
                four = reinterpret("int32", self.b.load(self.source.buffer, index, STEP))
                self._add(accs, p, self.lane_isa.vector(self.b.let(broadcast(four, self.lanes))), 0, ws)

    def _chunks(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr, chunks: int) -> None:
        """Four steps at a time."""
        with self.b.loop(chunks) as d:
            xs = self._vectors(tile, inputs + d * VECTOR)
            for u in range(_STEPS):
                ws = self._weights(tile, weights + d * (_STEPS * VECTOR) + u * VECTOR)
                for p, x in enumerate(xs):
                    self._add(accs, p, x, u, ws)

    def _vectors(self, tile: Tile, inputs: Expr) -> list[Expr]:
        """16 input bytes of every pixel."""
        b, found = self.b, []
        for p in range(tile.pixels):
            loaded = b.load(self.source.buffer, inputs + self._offset(tile, p), VECTOR)
            found.append(b.let(self.lane_isa.vector(b.let(reinterpret("int32x4", loaded)))))
        return found

    def _weights(self, tile: Tile, index: Expr) -> list[Expr]:
        """A step's weights of every block."""
        b, stride = self.b, self.steps * VECTOR
        loaded = [b.load(self.weights, index + g * stride, VECTOR) for g in range(tile.blocks)]
        return [b.let(reinterpret("int32x4", w)) for w in loaded]

    def _add(self, accs: list[list[Expr]], p: int, x: Expr, lane: int, ws: list[Expr]) -> None:
        """The dot products of lane number `lane` of a pixel's inputs into its accumulators."""
        b, isa = self.b, self.lane_isa
        operand: Operand = tuple(b.let(v) for v in isa.lane(x, lane))
        for g, w in enumerate(ws):
            b.store(accs[g][p], 0, isa.lane_dot(b.load(accs[g][p], 0), operand, w))


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `conv_direct.is_legal` holds."""
    return LaneConv(ctx).emit()
