"""The machines: everything about TVM and instruction sets.  Nothing here imports `passes`."""

from collections.abc import Mapping

__qcompile_api__ = 1
"""Marks this package as qcompile's; `qcompile.pm.registry` refuses another `targets` that shadows it."""

CATALOGUE: Mapping[str, str] = {
    "reference": "targets.reference.target:REFERENCE",
    "c": "targets.c.target:C",
    "x86-amx": "targets.x86_64.target:X86_AMX",
    "x86-vnni": "targets.x86_64.target:X86_VNNI",
    "x86-avx2": "targets.x86_64.target:X86_AVX2",
    "aarch64-neon": "targets.aarch64.target:AARCH64_NEON",
    "aarch64-dotprod": "targets.aarch64.target:AARCH64_DOTPROD",
    "aarch64-i8mm": "targets.aarch64.target:AARCH64_I8MM",
    "arm-neon": "targets.arm.target:ARM_NEON",
    "cuda": "targets.cuda.target:CUDA",
    **{f"cuda:sm_{n}": f"targets.cuda.target:CUDA_SM_{n}" for n in (75, 80, 86, 89, 90)},
}
"""Target name → "module:NAME" of its `qcompile.target.model.Target`, imported on first use."""
