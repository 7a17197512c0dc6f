"""Code generation for AArch64: USMMLA, SDOT, or products in int16."""

from __future__ import annotations

from qcompile.target.model import Target
from targets._tvm.cpu import CpuBackend, depthwise_variant, direct_variant, generic_variant, winograd_variant
from targets._tvm.kernels import conv_lanes, conv_matrix
from targets._tvm.kernels.winograd_form import F2
from targets._tvm.neon import AARCH64, Dotprod, Int16, Matrix, Usdot
from targets._tvm.neon_variants import FREESTANDING, inputs_fit_int8, int16_variants, needs_shift

_TRIPLE = "aarch64-linux-gnu"


def _options(features: str, core: str = "generic") -> dict[str, str]:
    """`core`: one that instructions are put in order for; every processor with the features runs them."""
    return {"mtriple": _TRIPLE, "mcpu": core, "mattr": features, "link_flags": FREESTANDING}


class AArch64Neon(CpuBackend):
    """Armv8.0: what every AArch64 processor runs."""

    def __init__(self, target: Target) -> None:
        variants = [*int16_variants(AARCH64, 32, 4), generic_variant(Int16())]
        super().__init__(target, _options("+neon", "cortex-a72"), variants)


class AArch64Dotprod(CpuBackend):
    """Armv8.2 with FEAT_DotProd."""

    def __init__(self, target: Target) -> None:
        same, shifted = Dotprod(offset=0), Dotprod()
        variants = [
            winograd_variant("winograd-2", same, F2),
            direct_variant("sdot", same, inputs_fit_int8, conv_lanes.emit),
            direct_variant("sdot-shifted", shifted, needs_shift, conv_lanes.emit),
            depthwise_variant(same, "depthwise", inputs_fit_int8),
            depthwise_variant(shifted, "depthwise-shifted", needs_shift),
            generic_variant(same),
        ]
        super().__init__(target, _options("+neon,+dotprod", "cortex-a76"), variants)


class AArch64I8mm(CpuBackend):
    """Armv8.6 with FEAT_I8MM: products of 2×8 by 8×2 bytes, and dot products of uint8 by int8."""

    def __init__(self, target: Target) -> None:
        variants = [
            direct_variant("usmmla", Matrix(), conv_matrix.is_legal, conv_matrix.emit),
            direct_variant("usdot", Usdot(), emit=conv_lanes.emit),
            winograd_variant("winograd-2", Usdot(), F2),
            depthwise_variant(Usdot()),
            generic_variant(Usdot()),
        ]
        super().__init__(target, _options("+neon,+dotprod,+i8mm"), variants)
