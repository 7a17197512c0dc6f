"""Code generation for x86-64: AVX-512 VNNI, or AVX2 where that is all there is."""

from __future__ import annotations

import numpy as np

from qcompile.ir import int_range
from qcompile.target.model import Target
from targets._tvm.context import Context
from targets._tvm.cpu import CpuBackend, depthwise_variant, direct_variant, generic_variant, winograd_variant
from targets._tvm.kernels.winograd import F2, F4
from targets.x86_64.isa import Avx2, Avx2Saturating, Vnni

_INT16_MAX = 32767
_TRIPLE = "x86_64-unknown-linux-gnu"


def pairs_fit_int16(ctx: Context) -> bool:
    """Whether two neighbouring products of these weights always fit int16: `vpmaddubsw` is then exact."""
    node = ctx.anchor
    _, highest = int_range(ctx.layout(node.inputs[0]).dtype)
    return 2 * highest * int(np.abs(ctx.const(node, "w").astype(np.int32)).max()) <= _INT16_MAX


class X86Vnni(CpuBackend):
    """AVX-512 with VNNI; code for the first CPU that had it, never for the building machine."""

    def __init__(self, target: Target) -> None:
        options = {"mtriple": _TRIPLE, "mcpu": "cascadelake"}
        super().__init__(
            target,
            options,
            [
                winograd_variant("winograd-2", Vnni(), F2),
                direct_variant("vnni", Vnni()),
                winograd_variant("winograd-4", Vnni(), F4),
                depthwise_variant(Vnni()),
                generic_variant(Vnni()),
            ],
        )


class X86Avx2(CpuBackend):
    """AVX2 only: `vpmaddubsw` where it is proved not to saturate, else products of int16."""

    def __init__(self, target: Target) -> None:
        options = {"mtriple": _TRIPLE, "mcpu": "haswell"}
        variants = [
            winograd_variant("winograd-2", Avx2(), F2),
            direct_variant("maddubs", Avx2Saturating(), pairs_fit_int16),
            direct_variant("madd", Avx2()),
            winograd_variant("winograd-4", Avx2(), F4),
            depthwise_variant(Avx2()),
            generic_variant(Avx2()),
        ]
        super().__init__(target, options, variants)
