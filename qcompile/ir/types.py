"""Tensor types: a dtype and a static shape whose first dimension is the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import GraphError

BATCH = -1
"""The batch dimension, the only one that is not static; always dimension 0 of a value."""

INT_BITS = range(2, 9)
_STORAGE: dict[str, str] = {"f32": "float32", "f64": "float64", "i64": "int64", "i32": "int32"}
_STORAGE |= {f"u{b}": "uint8" for b in INT_BITS}
_STORAGE |= {f"i{b}": "int8" for b in INT_BITS}

Array = NDArray[Any]


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype that holds values of an IR dtype: `u4` lies in `uint8`, `i5` in `int8`."""
    try:
        return np.dtype(_STORAGE[dtype])
    except KeyError:
        raise GraphError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(_STORAGE)}") from None


def bits_of(dtype: str) -> int:
    """The width of an integer dtype in bits."""
    return int(dtype[1:])


def int_range(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype; signed ones of 2 to 8 bits are symmetric (no −2^(b−1))."""
    bits = bits_of(dtype)
    if dtype[0] == "u":
        return 0, (1 << bits) - 1
    if bits <= 8:
        return -((1 << (bits - 1)) - 1), (1 << (bits - 1)) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a value; `shape[0]` is BATCH, everything behind it is static."""

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        storage(self.dtype)
        if not self.shape or self.shape[0] != BATCH or any(d < 1 for d in self.shape[1:]):
            raise GraphError(f"a value needs the shape (N, static…), not {self.shape}")

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        return self.shape[1:]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape[1:])

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        return TensorType(shape, self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(['N', *map(str, self.shape[1:])])}]"
