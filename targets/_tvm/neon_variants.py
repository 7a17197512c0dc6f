"""The implementations that every Arm target without dot products has, and what decides which is legal."""

from __future__ import annotations

from dataclasses import replace

from qcompile.ir import int_range
from targets._tvm.context import Context
from targets._tvm.cpu import Variant, depthwise_variant, direct_variant, winograd_variant
from targets._tvm.kernels import conv_int16
from targets._tvm.kernels.winograd_form import F2, F4
from targets._tvm.neon import Int16, Names

FREESTANDING = "-nodefaultlibs -Wl,--hash-style=both -Wl,-Bsymbolic -lgcc"
"""Flags of a library that needs no other one, and that a loader of a few lines can map; the compiler's own support
routines are linked into it."""


_CACHE = 2 << 20


def inputs_fit_int8(ctx: Context) -> bool:
    """Whether every input byte is the same number as int8."""
    return int_range(ctx.layout(ctx.anchor.inputs[0]).dtype)[1] <= 127


def needs_shift(ctx: Context) -> bool:
    """Whether inputs are taken less 128."""
    return not inputs_fit_int8(ctx)


def transformed_weights_fit(ctx: Context) -> bool:
    """Whether the weights of F(4, 3), eight times as many bytes, stay in a second-level cache."""
    w = ctx.const(ctx.anchor, "w")
    return 36 * 2 * int(w.shape[0]) * int(w.shape[1]) <= _CACHE


def int16_variants(names: Names, registers: int, operand_registers: int) -> list[Variant]:
    """Convolutions by products of int16, of inputs that fit int8 and of those that are shifted.

    Args:
        registers, operand_registers: as of an `Isa`; they decide the tiles, and were chosen by counting the
            instructions of the main convolutions (`benchmarks.instructions`).
    """
    same = Int16(names, registers=registers, operand_registers=operand_registers, offset=0)
    shifted = replace(same, offset=128)

    def as_they_are(ctx: Context) -> bool:
        return inputs_fit_int8(ctx) and conv_int16.pairs_fit(ctx)

    def less_128(ctx: Context) -> bool:
        return needs_shift(ctx) and conv_int16.pairs_fit(ctx)

    return [
        winograd_variant("winograd-2", same, F2),
        winograd_variant("winograd-4", same, F4, transformed_weights_fit),
        direct_variant("int16", same, as_they_are, conv_int16.emit),
        direct_variant("int16-shifted", shifted, less_128, conv_int16.emit),
        depthwise_variant(same, "depthwise", as_they_are),
        depthwise_variant(shifted, "depthwise-shifted", less_128),
    ]
