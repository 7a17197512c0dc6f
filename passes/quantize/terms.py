"""Requantizations: integer terms with real scales become dyadic multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Attrs, GraphBuilder, Grid
from qcompile.ir.ops import AttrValue, window_size
from qcompile.semantics.dyadic import dyadic


@dataclass(frozen=True, slots=True)
class Term:
    """A summand scale · (value − zero); `scale` is broadcastable to one sample of the value."""

    value: str
    scale: NDArray[np.float64]
    zero: int

    def negated(self) -> Term:
        return replace(self, scale=-self.scale)


def emit_requant(
    builder: GraphBuilder,
    name: str,
    terms: Sequence[Term],
    grid: Grid,
    lo: int,
    hi: int,
    sample: tuple[int, ...],
    slope: NDArray[np.float64] | None,
    origin: tuple[str, ...],
) -> str:
    """Append `requant(terms)` onto a grid; `slope` multiplies negative sums (LeakyReLU, PReLU)."""
    ratios = [_at_rank(term.scale / grid.scale, sample) for term in terms]
    if slope is not None:
        ratios.append(ratios[0] * _at_rank(slope, sample))
    multipliers, e = dyadic(ratios)
    consts = {f"m{i}": multipliers[i] for i in range(len(terms))} | {"e": e}
    if slope is not None:
        consts["mneg"] = multipliers[-1]
    attrs: dict[str, AttrValue] = {
        "zeros": tuple(term.zero for term in terms), "zp": grid.zero, "lo": lo, "hi": hi, "dtype": grid.dtype
    }  # fmt: skip
    return builder.add("requant", [t.value for t in terms], name=name, consts=consts, attrs=attrs, origin=origin)


def _at_rank(ratio: NDArray[np.float64], sample: tuple[int, ...]) -> NDArray[np.float64]:
    """The ratio with as many dimensions as one sample."""
    return np.asarray(ratio, np.float64).reshape((1,) * (len(sample) - np.ndim(ratio)) + np.shape(ratio))


def exact_mean_ratio(attrs: Attrs, sample: tuple[int, ...]) -> NDArray[np.float64]:
    """1 / (elements of the window): a scalar, or per position (1, H, W) where padding does not count."""
    kernel, stride, pad = attrs.ints("kernel"), attrs.ints("stride"), attrs.ints("pad")
    if attrs.int("count_pad") or not any(pad):
        return np.asarray(1.0 / (kernel[0] * kernel[1]))
    counts = []
    for axis in (0, 1):
        size = sample[1 + axis]
        out = window_size(size, kernel[axis], stride[axis], pad[axis], pad[axis + 2], 1)
        start = np.arange(out) * stride[axis] - pad[axis]
        counts.append(np.minimum(start + kernel[axis], size) - np.maximum(start, 0))
    return np.asarray(1.0 / (counts[0][None, :, None] * counts[1][None, None, :]))
