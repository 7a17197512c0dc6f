"""Tiles of the matrix kernel (`matrix_mma`) as data, and the names of its variants."""

from __future__ import annotations

import re
from dataclasses import dataclass

from targets.cuda.block import WARPS

CHUNK = 64
"""Bytes of the inner dimension, of the first factor, in shared memory at a time."""

_SHARED_BYTES = 48 << 10
"""Of a block, without asking the driver for more."""
_TICKET_BYTES = 16
"""What blocks that share a tile need besides."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of one block, rows × columns, and how they are shared out.

    Attributes:
        rows, cols: multiples of 16 for every warp.
        down: warps below each other; the others are beside each other.
        stages: chunks in shared memory, of which one is multiplied while the others arrive.
    """

    rows: int
    cols: int
    down: int
    stages: int

    @property
    def warp_rows(self) -> int:
        return self.rows // self.down

    @property
    def warp_cols(self) -> int:
        return self.cols // (WARPS // self.down)


TILES = (
    Tile(128, 128, 2, 3),
    Tile(128, 64, 2, 3),
    Tile(64, 128, 2, 3),
    Tile(64, 64, 2, 4),
    Tile(128, 32, 4, 4),
    Tile(64, 32, 2, 4),
    Tile(32, 64, 2, 4),
    Tile(32, 32, 2, 6),
    Tile(64, 16, 4, 6),
    Tile(16, 64, 1, 6),
)


@dataclass(frozen=True, slots=True)
class Form:
    """How the second factor is stored and multiplied.

    Attributes:
        suffix: of a variant's name.
        weight_bits: of a stored weight.
        nibbles: both factors are multiplied as 4-bit integers.
    """

    suffix: str
    weight_bits: int
    nibbles: bool


BYTES = Form("", 8, False)
PACKED = Form("-w4", 4, False)
NIBBLES = Form("-s4", 4, True)
FORMS = (BYTES, PACKED, NIBBLES)

NIBBLE_PRODUCTS = frozenset({"sm_75", "sm_80", "sm_86", "sm_89"})
"""Architectures whose tensor cores multiply 4-bit integers, at twice the speed of 8 bits (the vendor's Turing, A100,
GA102 and Ada white papers).  That of sm_90 lists none: the instruction exists there, made of others."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One implementation of a matrix product.

    Attributes:
        splits: blocks that share the inner dimension of a tile.
    """

    tile: Tile
    splits: int = 1
    form: Form = BYTES

    @property
    def name(self) -> str:
        split = f"-k{self.splits}" if self.splits > 1 else ""
        return f"mma-{self.tile.rows}x{self.tile.cols}{split}{self.form.suffix}"

    @property
    def stage_bytes(self) -> tuple[int, int]:
        """Of the first and of the second factor, of one chunk."""
        return self.tile.rows * CHUNK, self.tile.cols * CHUNK * self.form.weight_bits // 8

    @property
    def shared_bytes(self) -> int:
        """Of the pipeline; what is stored goes through the same memory afterwards."""
        return self.tile.stages * sum(self.stage_bytes)

    @property
    def room(self) -> int:
        """Bytes of shared memory for the pipeline and what comes with it."""
        return _SHARED_BYTES - (_TICKET_BYTES if self.splits > 1 else 0)

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= self.room


_NAME = re.compile(r"mma-(\d+)x(\d+)(?:-k(\d+))?(-\w+)?")


def parse(name: str) -> Variant | None:
    """The variant of a name; None where it is none that fits."""
    if not (found := _NAME.fullmatch(name)):
        return None
    rows, cols, splits, suffix = found.groups()
    tiles = [tile for tile in TILES if (tile.rows, tile.cols) == (int(rows), int(cols))]
    forms = [form for form in FORMS if form.suffix == (suffix or "")]
    if not tiles or not forms:
        return None
    variant = Variant(tiles[0], int(splits or 1), forms[0])
    return variant if variant.fits else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a matrix product's time depends on: rows of one sample, columns and chunks of a group, groups."""

    rows: int
    cols: int
    chunks: int
    groups: int = 1

    def across(self, tile: Tile) -> int:
        """Tiles beside each other, of all groups."""
        return self.groups * -(-self.cols // tile.cols)

    def tiles(self, tile: Tile) -> int:
        return -(-self.rows // tile.rows) * self.across(tile)

    def per_split(self, splits: int) -> int:
        """Chunks of one block."""
        return -(-self.chunks // splits)
