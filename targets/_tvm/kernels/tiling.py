"""Register tiles of convolutions: how many pixels times channel blocks one micro-kernel computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from targets._tvm.isa import Isa

_L1_BYTES = 32 << 10
_L2_BYTES_PER_CYCLE = 32
_EPILOGUE_CYCLES = 8
_TILE_CYCLES = 24
_UNROLLED_DOTS = 32
_WIDEST = 16

MOST = 32
"""Accumulators that a tile has at most, whatever the registers."""


@dataclass(frozen=True, slots=True)
class Tile:
    """`blocks` vectors of output channels × `rows` × `cols` pixels, all accumulators in registers."""

    blocks: int
    rows: int
    cols: int

    @property
    def pixels(self) -> int:
        return self.rows * self.cols


def spans(total: int, size: int) -> list[tuple[int, int, int]]:
    """Cover `total` by equal pieces of at most `size` and one remainder: (start, count, size) of each."""
    full = total // size
    found = [(0, full, size)] if full else []
    return found + ([(full * size, 1, total % size)] if total % size else [])


def fits(isa: Isa, tile: Tile, held: int = 0) -> bool:
    used = tile.pixels * tile.blocks + (tile.blocks + 1) * isa.operand_registers + held * tile.pixels
    return used <= isa.registers


def _cycles(isa: Isa, tile: Tile, steps: int, multiple: int) -> float:
    dots = -(-tile.pixels // multiple) * multiple * tile.blocks
    loads = tile.pixels + tile.blocks
    weights = tile.blocks * isa.lanes * 4
    step = max(dots * isa.dot_cycles, loads * isa.load_cycles, isa.dot_latency)
    if weights * steps > _L1_BYTES:
        step = max(step, weights / _L2_BYTES_PER_CYCLE)
    return step * steps + dots * _EPILOGUE_CYCLES + _TILE_CYCLES


def _candidates(isa: Isa, blocks: int, height: int, width: int, shared_blocks: int, held: int) -> Iterator[Tile]:
    for group in (1, 2, 3, 4, 6, 8):
        if group > blocks or (shared_blocks % group and shared_blocks < blocks):
            continue
        for rows in range(1, min(height, 8) + 1):
            for cols in range(1, min(width, _WIDEST) + 1):
                tile = Tile(group, rows, cols)
                if fits(isa, tile, held):
                    yield tile


def choose_tile(
    isa: Isa,
    blocks: int,
    height: int,
    width: int,
    steps: int,
    shared_blocks: int,
    most: int = MOST,
    held: int = 0,
    multiple: int = 1,
) -> Tile:
    """The tile with the smallest modelled time.

    Args:
        blocks: vectors of output channels.
        steps: `dot4` steps of one output.
        shared_blocks: consecutive blocks that read the same input channels.
        most: accumulators a tile may have.
        held: registers that hold each pixel's inputs for several steps.
        multiple: pixels that one instruction computes.
    """

    def cost(tile: Tile) -> tuple[float, int]:
        total = 0.0
        for _, count_g, group in spans(blocks, tile.blocks):
            for _, count_r, rows in spans(height, tile.rows):
                for _, count_c, cols in spans(width, tile.cols):
                    total += count_g * count_r * count_c * _cycles(isa, Tile(group, rows, cols), steps, multiple)
        return total, tile.rows

    tiles = _candidates(isa, blocks, height, width, shared_blocks, held)
    return min((tile for tile in tiles if tile.pixels * tile.blocks <= most), key=cost)


def unroll_of(tile: Tile, steps: int) -> int:
    """How many consecutive steps to unroll: a divisor of `steps`."""
    limit = max(1, _UNROLLED_DOTS // (tile.pixels * tile.blocks))
    return next(u for u in range(min(limit, steps), 0, -1) if steps % u == 0)
