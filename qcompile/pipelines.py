"""The default pipelines as tables of contents; `--print-pipeline` shows them, `--passes` replaces the float ones.

Phases run in this order: CANONICALIZE, ANALYSIS, PLAN, ROUND, QUANTIZE, LOWER.  What differs between targets is in the
target's data, never here.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompile.errors import UsageError

CANONICALIZE: tuple[str, ...] = (
    "fold-constants",
    "drop-noop-movement",
    "fold-batch-norm",
    "fuse-unary",
    "normalize-pooling",
    "fold-affine",
    "merge-clips",
    "drop-noop-movement",
    "movement-to-slice",
    "split-tail",
    "canonical-names",
)
"""One normal form for every source: what torch and ONNX captures of one network agree on."""

CALIBRATE: tuple[str, ...] = ("equalize-layers", "calibrate-ranges")
"""All that a uniform or given plan needs."""

SENSITIVITIES: Mapping[str, tuple[str, ...]] = {
    "output-gram": ("round-candidates", "measure-output-gram", "predict-loss"),
    "output-gram-pairs": ("round-candidates", "measure-output-gram", "predict-loss"),
    "single": ("round-candidates", "measure-single-loss", "predict-loss"),
    "single-gram": ("round-candidates", "measure-single-loss", "measure-output-gram", "predict-loss"),
    "fisher-gram": ("round-candidates", "estimate-fisher-gram", "predict-loss"),
    "single-fisher-gram": ("round-candidates", "measure-single-loss", "estimate-fisher-gram", "predict-loss"),
    "hvp": ("round-candidates", "estimate-hvp-rows", "predict-loss"),
    "pairs": ("round-candidates", "measure-pair-loss", "predict-loss"),
    "trace": (
        "round-candidates",
        "measure-weight-error",
        "estimate-hessian-trace",
        "estimate-trace-loss",
        "predict-loss",
    ),
    "fisher": ("round-candidates", "estimate-fisher-loss", "predict-loss"),
    "output-fisher": ("round-candidates", "estimate-output-fisher", "predict-loss"),
    "sqnr": ("round-candidates", "measure-output-noise", "predict-loss"),
}
"""`--sensitivity` → the passes that end in a table of predicted losses (and interactions, where they find any).

`python -m benchmarks.sensitivity` compares them; the first one is the default."""

DEFAULT_SENSITIVITY = "output-gram"

ADDITIVE = frozenset({DEFAULT_SENSITIVITY})
"""Sensitivities whose terms between layers are reported and not minimised.

On the networks measured the terms hardly improve the predictions, while a linear program has a proof of its optimum."""


def losses(sensitivity: str) -> tuple[str, ...]:
    """The passes that predict losses.  Raises UsageError for a name that is not known."""
    if sensitivity not in SENSITIVITIES:
        raise UsageError(f"unknown sensitivity {sensitivity!r}", hint=f"sensitivities are {', '.join(SENSITIVITIES)}")
    return SENSITIVITIES[sensitivity]


def analysis(sensitivity: str = DEFAULT_SENSITIVITY) -> tuple[str, ...]:
    """What the integer program needs to know of every layer."""
    return (*losses(sensitivity), "check-prediction", "group-layers", "estimate-cost")


ANALYSIS: tuple[str, ...] = analysis()

ROUND: tuple[str, ...] = ("round-weights", "tune-scales")
"""Weights to integers, from calibration data; scales are tuned behind GPTQ."""

QUANTIZE: tuple[str, ...] = ("integerize",)
"""The one lossy step."""

LOWER: tuple[str, ...] = ("copy-at-boundary", "prove-ranges", "plan-memory", "choose-kernels")
"""From the integer graph to a program of kernels; `emit` builds it."""
