"""How a convolution is cut into AMX tiles: what a tile's rows and bytes are, and how many tiles are held at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from targets._tvm.kernels.conv_direct import Geometry
from targets.x86_64.amx import ACCUMULATORS, ROW_BYTES, ROWS

_L1_BYTES = 40 << 10
_LOAD_CYCLES, _L2_LOAD_CYCLES, _STORE_CYCLES = 8, 20, 16
_MULTIPLY_LATENCY, _LEAST_MULTIPLY = 52, 10
_LOAD_SHARE = 3
"""Multiplications hide loads but for one part in so many."""

_VECTOR_CYCLES = 6
_BLOCK_CYCLES = 40


@dataclass(frozen=True, slots=True)
class Runs:
    """The input bytes of one output pixel, cut into steps of at most 64 consecutive bytes.

    Attributes:
        merged: the taps of a kernel row form one run of bytes, with weights of 0 between them; else every tap is one.
        count: runs of a kernel row.
        chunks, chunk: steps of a run and the bytes of each; the last one may read beyond the run, times zero.
    """

    merged: bool
    count: int
    size: int
    chunks: int
    chunk: int

    @property
    def surplus(self) -> int:
        """Bytes that are read behind a run."""
        return self.chunks * self.chunk - self.size


def choose_runs(g: Geometry) -> Runs:
    """The cut with the fewest steps."""
    _, channels, _, kw = g.weights.shape
    together = (kw - 1) * g.pixel + channels
    merged = g.dilation[1] == 1 and -(-together // ROW_BYTES) < kw * -(-channels // ROW_BYTES)
    count, size = (1, together) if merged else (kw, channels)
    chunks = -(-size // ROW_BYTES)
    chunk = -(-size // (4 * chunks)) * 4
    return Runs(merged, count, size, chunks, chunk)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles of pixels times groups of 16 output channels.

    Tiles and groups that do not divide overlap at the end: what they have in common is computed twice, alike.

    Attributes:
        rows: output pixels of a tile.
        tiles: tiles of pixels in a block.
        groups: groups of channels in a block.
        whole: one block is all of the image, its input rows one behind the other, borders included; else a tile is
            a part of one row of the image.
        columns: tiles in a row of the image, or of the whole image.
    """

    rows: int
    tiles: int
    groups: int
    whole: bool
    columns: int

    @property
    def accumulators(self) -> int:
        return self.tiles * self.groups


def choose_blocks(g: Geometry, groups: int, steps: int, chunk: int) -> Blocks:
    """The blocks with the smallest modelled time, for `groups` groups of channels and `steps` steps."""

    def cost(blocks: Blocks) -> float:
        outer = -(-groups // blocks.groups)
        inner = 1 if blocks.whole else -(-g.height * blocks.columns // blocks.tiles)
        panel = steps * chunk * 16 * blocks.groups
        weights = _LOAD_CYCLES if panel < _L1_BYTES else _L2_LOAD_CYCLES
        loads = blocks.tiles * _LOAD_CYCLES + blocks.groups * weights
        step: float = max(blocks.accumulators * max(_LEAST_MULTIPLY, blocks.rows), _MULTIPLY_LATENCY, loads)
        step += loads / _LOAD_SHARE
        pixels = g.height * g.width if blocks.whole else blocks.tiles * blocks.rows
        tail = pixels * blocks.groups * _VECTOR_CYCLES
        moved = blocks.accumulators * (_LOAD_CYCLES + _STORE_CYCLES) + _BLOCK_CYCLES
        return outer * inner * (max(step * steps, tail) + moved)

    return min(_candidates(g, groups), key=cost)


def _candidates(g: Geometry, groups: int) -> Iterator[Blocks]:
    columns = -(-g.width // ROWS)
    rows = -(-g.width // columns)
    for tiles in range(1, min(ACCUMULATORS, g.height * columns) + 1):
        for count in (1, 2, 4):
            if tiles * count <= ACCUMULATORS and count <= groups:
                yield Blocks(rows, tiles, count, False, columns)
    positions = flat_positions(g)
    tiles = -(-positions // ROWS)
    if g.height > 1 and max(g.stride) == 1 and tiles <= ACCUMULATORS:
        for count in (1, 2, 4):
            if tiles * count <= ACCUMULATORS and count <= groups:
                yield Blocks(-(-positions // tiles), tiles, count, True, tiles)


def flat_positions(g: Geometry) -> int:
    """Input pixels from that of the first output to that of the last, for stride 1."""
    return (g.height - 1) * (g.row // g.pixel) + g.width
