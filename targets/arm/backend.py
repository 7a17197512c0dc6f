"""Code generation for 32-bit Arm: NEON, products in int16."""

from __future__ import annotations

from qcompile.target.model import Target
from targets._tvm.cpu import CpuBackend, generic_variant
from targets._tvm.neon import ARM, Int16
from targets._tvm.neon_variants import FREESTANDING, int16_variants

_REGISTERS = 16
_OPTIONS = {"mtriple": "armv7a-linux-gnueabihf", "mattr": "+neon,+v7,+vfp3", "link_flags": FREESTANDING}


class ArmNeon(CpuBackend):
    """Armv7-A with NEON."""

    def __init__(self, target: Target) -> None:
        # Two of the 16 registers stay free for products.
        variants = [*int16_variants(ARM, _REGISTERS - 2, 1), generic_variant(Int16(ARM, registers=_REGISTERS))]
        super().__init__(target, _OPTIONS, variants)
