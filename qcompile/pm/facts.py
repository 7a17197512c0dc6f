"""The notes passes exchange: one key and one frozen value type for each kind of fact.

Subjects: `layer` is the name of a conv2d or linear node, `value` the name of a stored value (see
`passes.structure`), `grid` the name of a grid group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
class Sensitivity:
    """What each width of one subject alone adds to the loss, all others in floats: what every estimator yields.

    Attributes:
        loss: bits → increase.
        standard_error: bits → of the increase, over samples or probes; empty where it is not known.
        method: the pass that found it.
    """

    loss: Mapping[int, float]
    standard_error: Mapping[int, float]
    method: str


@dataclass(frozen=True, slots=True)
class LossTable:
    """Predicted increase of the loss for each (w, a) choice of a layer: what adds up over layers.

    Attributes:
        loss: of each choice; the share of a grid group's activations is split evenly among its layers.
        standard_error: of each choice where the estimator knows it, else empty.
    """

    loss: Mapping[Bits, float]
    standard_error: Mapping[Bits, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Second-order inter-layer terms: matrix[i, j] is added to the predicted loss if the choices of rows i and j are
    both made (once for each unordered pair i ≠ j).

    Attributes:
        subjects: of each row: "w:<layer>" or "a:<grid group>".
        bits: of each row.
        matrix: float64 (n, n), symmetric, zero within one subject.
        method: how the terms were found.
    """

    subjects: tuple[str, ...]
    bits: tuple[int, ...]
    matrix: NDArray[np.float64]
    method: str


@dataclass(frozen=True, slots=True)
class Validity:
    """How well predicted losses agree with measured ones over random plans.

    Attributes:
        plans, samples: how many plans were measured, on how many samples that no analysis has seen.
        additive_spearman, additive_r2: rank and squared linear correlation of the sum of the layers' losses.
        augmented_spearman, augmented_r2: the same with the terms between layers; None where there are none.
        spearman_error: about the standard error of the rank correlation, (1 − ρ²)/√(plans − 1).
    """

    plans: int
    samples: int
    additive_spearman: float
    additive_r2: float
    augmented_spearman: float | None
    augmented_r2: float | None
    spearman_error: float

    @property
    def spearman(self) -> float:
        """Rank correlation of the most complete prediction there is."""
        return self.additive_spearman if self.augmented_spearman is None else self.augmented_spearman


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


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """About the integers a layer will get at each width it may be given: bits → weights and bias."""

    by_bits: Mapping[int, Rounded]


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """The largest eigenvalue of the loss's Hessian in one layer's weights, by power iteration (HAWQ, a diagnostic).

    Attributes:
        value: of the mean loss.
        iterations: products taken.
        change: relative change of the last one; the iteration stops below its tolerance.
    """

    value: float
    iterations: int
    change: float


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
TOP_EIGENVALUE = NoteKey("top-eigenvalue", Eigenvalue, _ALL)
"""by layer"""
CANDIDATES = NoteKey("candidates", Candidates, _ALL)
"""by layer; empty where weights will be rounded to nearest"""
SENSITIVITY = NoteKey("sensitivity", Sensitivity, _ALL)
"""by "w:<layer>" (its weights) and "a:<grid>" (what the layers of a grid group read)"""
LOSS = NoteKey("loss", LossTable, _ALL)
"""by layer"""
INTERACTIONS = NoteKey("interactions", Interactions, _ALL)
"""by "" (the whole graph)"""
VALIDITY = NoteKey("validity", Validity, _ALL)
"""by "" (the whole graph)"""
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
