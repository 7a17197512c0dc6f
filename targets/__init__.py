"""The machines: everything about TVM and instruction sets.  Nothing here imports `passes`."""

from collections.abc import Mapping

__qcompile_api__ = 1
"""Marks this package as qcompile's; `qcompile.pm.registry` refuses another `targets` that shadows it."""

CATALOGUE: Mapping[str, str] = {
    "reference": "targets.reference.target:REFERENCE",
    "x86-vnni": "targets.x86_64.target:X86_VNNI",
    "x86-avx2": "targets.x86_64.target:X86_AVX2",
}
"""Target name → "module:NAME" of its `qcompile.target.model.Target`, imported on first use."""
