"""Calling `boundary.so` (see `targets._tvm.host`, which writes it); NumPy only."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompile.ir import Array, Grid, int_range, storage
from targets._tvm.shared_object import open_shared_object

BOUNDARY = "boundary.so"
ENTRY = "qcompile_quantize"

_SCALES = (1e-30, 1e30)
"""Where the inverse of a scale is a normal float32."""


@dataclass(frozen=True)
class _Prepared:
    """The arguments of one grid: arrays, which must stay alive, and their addresses."""

    control: Array
    numbers: tuple[Array, Array]
    addresses: tuple[int, int, int]
    dtype: np.dtype[np.generic]

    @staticmethod
    def of(grid: Grid) -> _Prepared:
        lo, hi = int_range(grid.dtype)
        control = np.array([0, grid.zero, lo, hi, 0], dtype=np.int32)
        numbers = (np.array([grid.scale]), np.array([1 / grid.scale], dtype=np.float32))
        addresses = (address(control), address(numbers[0]), address(numbers[1]))
        return _Prepared(control, numbers, addresses, storage(grid.dtype))


class NativeQuantizer:
    """`Executable.quantize` in native code.  Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._call = getattr(open_shared_object(path), ENTRY)
        self._call.argtypes = [ctypes.c_void_p] * 5
        self._prepared: dict[Grid, _Prepared] = {}

    def quantize(self, x: Array, grid: Grid) -> Array | None:
        """Contiguous float32 → integers; None where an element is not finite or the grid is an unusual one."""
        known = self._prepared.get(grid)
        if known is None:
            if not (grid.dtype[0] == "u" and _SCALES[0] <= grid.scale <= _SCALES[1]):
                return None
            known = self._prepared[grid] = _Prepared.of(grid)
        out: Array = np.empty(x.shape, dtype=known.dtype)
        control = known.control
        control[0], control[4] = x.size, 0
        self._call(*known.addresses, address(x), address(out))
        return None if control[4] else out


def address(array: Array) -> int:
    """Of the first element."""
    return int(array.__array_interface__["data"][0])
