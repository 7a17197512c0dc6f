"""The notes passes exchange: one key and one frozen value type for each kind of fact.

Subjects: `layer` is the name of a conv2d or linear node, `value` the name of a stored value (see
`passes.structure`), `grid` the name of a grid group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Array, Aspect, NoteKey

Bits = tuple[int, int]
"""(weight bits, activation bits); the activation is the layer's input."""

_ALL = Aspect.STRUCTURE | Aspect.WEIGHTS


@dataclass(frozen=True, slots=True)
class Range:
    """What calibration saw of a grid group, and the clipping range it chose for each bit width.

    Attributes:
        lo, hi: smallest and largest value seen.
        clip: activation bits → (lo, hi) in real units; contains 0.
        error: activation bits → mean squared rounding and clipping error per element, real units squared.
        samples: calibration samples seen.
    """

    lo: float
    hi: float
    clip: Mapping[int, tuple[float, float]]
    error: Mapping[int, float]
    samples: int


@dataclass(frozen=True, slots=True)
class WeightError:
    """‖Q_b(W) − W‖² of a layer for each weight bit width, after choosing the scale."""

    squared: Mapping[int, float]
    numel: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Hutchinson estimate of the average Hessian trace Tr(H)/n of a layer's weights or of an activation.

    Attributes:
        mean: trace divided by `numel`, clamped at 0.
        standard_error: of `mean`, over probes.
        probes, samples: how many of each.
        numel: elements (of one sample, for activations).
    """

    mean: float
    standard_error: float
    probes: int
    samples: int
    numel: int


@dataclass(frozen=True, slots=True)
class LossTable:
    """Predicted increase of the loss for each (w, a) choice of a layer."""

    loss: Mapping[Bits, float]


@dataclass(frozen=True, slots=True)
class CostTable:
    """What each (w, a) choice of a layer costs.

    Attributes:
        seconds: latency of the layer's kernels for each choice.
        bytes: packed weight bytes for each weight bit width.
        activation_bytes: bytes its input occupies for each activation bit width.
        source: "measured", "shipped" or "roofline".
    """

    seconds: Mapping[Bits, float]
    bytes: Mapping[int, int]
    source: str


@dataclass(frozen=True, slots=True)
class GridGroup:
    """The grid group a layer reads; layers of one group share their activation bits (they are tied)."""

    grid: str


@dataclass(frozen=True, slots=True)
class BitChoice:
    """The planned precision of a layer."""

    w: int
    a: int


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A layer's weights as integers, and the bias that goes with them.

    Attributes:
        bits: width of the weights.
        q: int8, the weights' shape, |q| ≤ 2^(bits−1) − 1.
        scale: of each output channel, float64 (O,).
        b: bias in real units, float64 (O,).
    """

    bits: int
    q: Array
    scale: NDArray[np.float64]
    b: NDArray[np.float64]

    def real(self) -> NDArray[np.float64]:
        """The weights the integers stand for."""
        return np.asarray(self.q.astype(np.float64) * self.scale.reshape(-1, *[1] * (self.q.ndim - 1)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest integer a value can take, proved."""

    lo: int
    hi: int


RANGES = NoteKey("ranges", Range, _ALL)
"""by grid"""
WEIGHT_ERROR = NoteKey("weight-error", WeightError, _ALL)
"""by layer"""
WEIGHT_TRACE = NoteKey("weight-trace", Trace, _ALL)
"""by layer"""
ACTIVATION_TRACE = NoteKey("activation-trace", Trace, _ALL)
"""by grid: the trace with respect to what the layers of the group read"""
LOSS = NoteKey("loss", LossTable, _ALL)
"""by layer"""
GROUPS = NoteKey("groups", GridGroup, Aspect.STRUCTURE)
"""by layer"""
COSTS = NoteKey("costs", CostTable, Aspect.STRUCTURE)
"""by layer"""
BITS = NoteKey("bits", BitChoice, Aspect.STRUCTURE)
"""by layer"""
ROUNDED = NoteKey("rounded", Rounded, _ALL)
"""by layer"""
BOUNDS = NoteKey("bounds", Bounds, _ALL)
"""by value of the integer graph"""
