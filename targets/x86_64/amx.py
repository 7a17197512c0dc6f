"""Intel AMX: the right to use the tile registers, their shapes, and the instructions on them.

Eight tile registers hold up to 16 rows of 64 bytes each.  `tdpbusd` adds to an int32 tile the product of a tile of
uint8 (a row: one output pixel) and a tile of int8 (a row: 4 inputs of 16 output channels), without saturation.
(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)
"""

from __future__ import annotations

from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Builder, Expr, const
from targets._tvm.context import Context

ROWS = 16
"""Rows of a tile register."""

ROW_BYTES = 64
"""Bytes of a row."""

ACCUMULATORS = 4
"""Tile registers 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights."""

LINE = 64
"""Bytes of a cache line."""

_PIXELS, _WEIGHTS = (4, 5), (6, 7)
_INTO_LEVEL_2 = 2
_DATA_CACHE = 1


def configuration(rows: int, chunk: int) -> tuple[int, ...]:
    """What `ldtilecfg` reads, as 16 int32: accumulators and pixels have `rows` rows, weights `chunk`/4; pixels
    have `chunk` bytes a row.
    """
    shapes = [(rows, ROW_BYTES)] * ACCUMULATORS + [(rows, chunk)] * len(_PIXELS)
    shapes += [(chunk // 4, ROW_BYTES)] * len(_WEIGHTS)
    palette = bytes([1]) + bytes(15)
    widths = b"".join(width.to_bytes(2, "little") for _, width in shapes) + bytes(16)
    heights = bytes(height for height, _ in shapes) + bytes(8)
    whole = palette + widths + heights
    return tuple(int.from_bytes(whole[i : i + 4], "little") for i in range(0, 64, 4))


class Tiles:
    """Emits tile instructions.

    LLVM treats them as reading and writing any memory, so they stay in order with each other and with every load
    and store.

    Args:
        rows: pixels of a tile.
        chunk: input bytes of a pixel in a tile, a multiple of 4.
    """

    def __init__(self, ctx: Context, rows: int, chunk: int) -> None:
        self._b: Builder = ctx.b
        self._shapes = ctx.constant(ctx.pack("literal", values=configuration(rows, chunk)))

    def _emit(self, name: str, *args: Expr) -> None:
        self._b.evaluate(tir.call_llvm_intrin("void", name, *args))

    def _address(self, buffer: Any, index: Expr) -> Expr:
        return tir.address_of(self._b.load(buffer, index))

    def configure(self) -> None:
        """Shape and clear the registers of this thread."""
        self._emit("llvm.x86.ldtilecfg", self._address(self._shapes, 0))

    def release(self) -> None:
        """Give the registers of this thread back, so that the system need not save them."""
        self._emit("llvm.x86.tilerelease")

    def load(self, register: int, buffer: Any, index: Expr, stride: int) -> None:
        """Rows that lie `stride` bytes apart; with 0 all rows are the same."""
        where = self._address(buffer, index)
        self._emit("llvm.x86.tileloadd64", _number(register), where, const(stride, "int64"))

    def store(self, register: int, buffer: Any, index: Expr, stride: int) -> None:
        where = self._address(buffer, index)
        self._emit("llvm.x86.tilestored64", _number(register), where, const(stride, "int64"))

    def multiply(self, accumulator: int, pixels: int, weights: int) -> None:
        """accumulator += uint8 pixels · int8 weights."""
        self._emit("llvm.x86.tdpbusd", _number(accumulator), _number(pixels), _number(weights))

    def prefetch(self, buffer: Any, index: Expr) -> None:
        """Begin to bring a cache line into the second-level cache; any address may be named."""
        read = const(0)
        self._emit("llvm.prefetch", self._address(buffer, index), read, const(_INTO_LEVEL_2), const(_DATA_CACHE))


def pixel_register(i: int) -> int:
    """The register of the i-th tile of pixels in a step."""
    return _PIXELS[i % len(_PIXELS)]


def weight_register(i: int) -> int:
    """The register of the i-th tile of weights in a step."""
    return _WEIGHTS[i % len(_WEIGHTS)]


def _number(register: int) -> Expr:
    return tir.IntImm("int8", register)
