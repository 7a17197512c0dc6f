"""The default pipelines as tables of contents; `--print-pipeline` shows them, `--passes` replaces the float ones.

Phases run in this order: CANONICALIZE, ANALYSIS, PLAN, ROUND, QUANTIZE, LOWER.  What differs between targets is in the
target's data, never here.
"""

from __future__ import annotations

CANONICALIZE: tuple[str, ...] = (
    "fold-constants",
    "drop-noop-movement",
    "fold-batch-norm",
    "fuse-unary",
    "normalize-pooling",
    "fold-affine",
    "merge-clips",
    "drop-noop-movement",
    "split-tail",
    "canonical-names",
)
"""One normal form for every source: what torch and ONNX captures of one network agree on."""

CALIBRATE: tuple[str, ...] = ("calibrate-ranges",)
"""All that a uniform or given plan needs."""

ANALYSIS: tuple[str, ...] = (
    "measure-weight-error",
    "estimate-hessian-trace",
    "predict-loss",
    "group-layers",
    "estimate-cost",
)
"""What the integer program needs to know of every layer."""

ROUND: tuple[str, ...] = ("round-weights",)
"""Weights to integers, from calibration data."""

QUANTIZE: tuple[str, ...] = ("integerize",)
"""The one lossy step."""

LOWER: tuple[str, ...] = ("copy-at-boundary", "prove-ranges", "plan-memory", "choose-kernels")
"""From the integer graph to a program of kernels; `emit` builds it."""
