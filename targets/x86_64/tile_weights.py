"""Where AMX kernels take their tiles of weights from: memory as it is, or two 4-bit weights to a byte.

Each inference reads all weights once from memory or the last cache, and late layers with few pixels do little else.
Weights of at most 4 bits are therefore stored as half as many bytes: a 64-byte vector holds in its lower nibbles the
first 64 bytes of a pair of vectors, in its upper nibbles the second.  One instruction each (`vgf2p8affineqb`, a linear
map of the bits of a byte) makes signed bytes of them, in a few KiB of stack that tiles are loaded from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import tirx as tir

from qcompile.ir import Array
from targets._tvm.builder import Builder, Expr, const, llvm, reinterpret
from targets._tvm.context import Constant, Context
from targets._tvm.packing import NIBBLE_PAIR
from targets.x86_64.amx import LINE

LEAST_BYTES, LEAST_PER_PIXEL = 256 << 10, 1400
"""Fewer bytes of weights, in all or for each output pixel, take less time to read than to unpack: measured 1337 and
1505 bytes for each pixel on either side."""

AHEAD = 2
"""Steps between unpacking a tile and loading it: its stores are then done.  As many are read behind the last."""

_RING = 4
"""Tiles of a group that are held at once, a power of 2, more than `AHEAD`: stores are quick in the first cache only,
so weights that several blocks use are unpacked for each of them again."""

_LOW, _HIGH = 0x0102040808080808, 0x1020408080808080
"""Bit matrices that extend the sign of a byte's lower and upper nibble: byte 7 − i holds the row of result bit i."""


def fit_nibbles(w: Array, pixels: int) -> bool:
    """Whether every weight has at most 4 bits, and packing them is worth while for so many output pixels."""
    worth = w.size >= max(LEAST_BYTES, LEAST_PER_PIXEL * pixels)
    return worth and int(w.min()) >= -8 and int(w.max()) <= 7


@dataclass(frozen=True, slots=True)
class Panels:
    """How the blocks of a kernel walk through the weights.

    Attributes:
        steps, tile_bytes: of a group of 16 channels.
        groups: of a block.
    """

    steps: int
    tile_bytes: int
    groups: int


class TileWeights(Protocol):
    """The weights of one kernel as its blocks need them.

    Attributes:
        buffer: the packed weights.
        stored: bytes of a tile there.
    """

    buffer: Any
    stored: int

    def allocate(self, panels: Panels) -> None:
        """Make room in the part of a shared loop that is open."""

    def begin(self, group: Expr) -> None:
        """A block starts with this group of channels."""

    def step(self, s: Expr) -> None:
        """A step starts."""

    def tile(self, n: int, s: Expr) -> tuple[Any, Expr]:
        """Where the tile of group n of the block lies in step s: a buffer of bytes and the index."""


class WholeBytes:
    """Weights that are loaded from where they are stored."""

    def __init__(self, ctx: Context, packed: Constant, tile_bytes: int) -> None:
        self._b, self.buffer, self.stored = ctx.b, ctx.constant(packed), tile_bytes

    def allocate(self, panels: Panels) -> None:
        self._panels = panels

    def begin(self, group: Expr) -> None:
        p = self._panels
        self._first = self._b.let(group * (p.steps * p.tile_bytes))

    def step(self, s: Expr) -> None:
        self._at = self._b.let(self._first + s * self._panels.tile_bytes)

    def tile(self, n: int, s: Expr) -> tuple[Any, Expr]:
        return self.buffer, self._at + n * (self._panels.steps * self._panels.tile_bytes)


class Nibbles:
    """Weights that are unpacked a few steps before they are loaded."""

    def __init__(self, ctx: Context, packed: Constant, tile_bytes: int) -> None:
        self._b: Builder = ctx.b
        self.buffer = ctx.constant(packed)
        self.stored = tile_bytes // NIBBLE_PAIR * LINE + (LINE if tile_bytes % NIBBLE_PAIR else 0)
        self._tile_bytes = tile_bytes

    def allocate(self, panels: Panels) -> None:
        self._panels = panels
        self._room = -(-self._tile_bytes // NIBBLE_PAIR) * NIBBLE_PAIR
        self._unpacked, self._start = self._b.aligned_local("int8", panels.groups * _RING * self._room)

    def begin(self, group: Expr) -> None:
        self._first = self._b.let(group * (self._panels.steps * self.stored))
        for s in range(AHEAD):
            self._unpack(const(s))

    def step(self, s: Expr) -> None:
        # Behind the last step lies the next group, or zeros: never used.
        self._unpack(s + AHEAD)

    def tile(self, n: int, s: Expr) -> tuple[Any, Expr]:
        return self._unpacked, self._slot(n, s)

    def _slot(self, n: int, s: Expr) -> Expr:
        return self._start + ((s & (_RING - 1)) + n * _RING) * self._room

    def _unpack(self, s: Expr) -> None:
        b, p = self._b, self._panels
        for n in range(p.groups):
            source = b.let(self._first + (s + n * p.steps) * self.stored)
            target = b.let(self._slot(n, s))
            for v in range(self.stored // LINE):
                pair = b.let(b.load(self.buffer, source + v * LINE, LINE))
                for half, matrix in enumerate((_LOW, _HIGH)):
                    b.store(self._unpacked, target + (2 * v + half) * LINE, _map_bits(pair, matrix))


def _map_bits(x: Expr, matrix: int) -> Expr:
    """A linear map of the 8 bits of every one of 64 bytes."""
    rows = tir.Broadcast(tir.IntImm("int64", int(np.uint64(matrix).view(np.int64))), 8)
    return llvm("llvm.x86.vgf2p8affineqb.512", "int8x64", x, reinterpret("int8x64", rows), tir.IntImm("int8", 0))
