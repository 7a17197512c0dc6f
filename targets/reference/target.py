"""The reference target as data."""

from __future__ import annotations

from qcompile.target.model import Target

REFERENCE = Target(
    name="reference",
    summary="the NumPy interpreter: defines the result every other target must equal",
    backend="targets.reference.backend:ReferenceBackend",
    alignment=1,
    peak_macs_per_second=5e9,
)
