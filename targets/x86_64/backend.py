"""Code generation for x86-64: AMX, AVX-512 VNNI, or AVX2 where that is all there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qcompile.errors import DeviceError, TargetError
from qcompile.ir import Graph, int_range
from qcompile.target.backend import Backend, Executable, Measurement
from qcompile.target.deployment import Deployment
from qcompile.target.device import Device
from qcompile.target.model import Target
from qcompile.target.program import Kernel, Program
from targets._tvm.context import Context
from targets._tvm.cpu import CpuBackend, Variant, depthwise_variant, direct_variant, generic_variant, winograd_variant
from targets._tvm.kernels import winograd, winograd_inline, winograd_rows
from targets._tvm.kernels.winograd_form import F2, F4
from targets._tvm.packing import WINOGRAD_OFFSET, winograd_transform
from targets.x86_64 import conv_pairs, conv_sums, conv_tiles, conv_vnni
from targets.x86_64.isa import INT16_MAX, Avx2, Avx2Saturating, Vnni
from targets.x86_64.permission import request_permission

_TRIPLE = "x86_64-unknown-linux-gnu"

AMX = Vnni(parallel_operations=1 << 23)
"""The vectors that requantize what the tiles have summed; many times the work is done before threads are worth it."""


_INT16 = Avx2(dot_cycles=0.5, operand_registers=1)
"""AVX2 where values of 16 bits are multiplied as they are: one instruction a dot product, one register an operand."""

_WEIGHING = 1 << 20
"""Weights of a layer that take 8 MiB when they are transformed."""


def pairs_fit_int16(ctx: Context) -> bool:
    """Whether two neighbouring products of these weights always fit int16: `vpmaddubsw` is then exact."""
    node = ctx.anchor
    _, highest = int_range(ctx.layout(node.inputs[0]).dtype)
    return 2 * highest * int(np.abs(ctx.const(node, "w").astype(np.int32)).max()) <= INT16_MAX


def transformed_pairs_fit_int16(ctx: Context) -> bool:
    """The same of transformed values of F(2×2, 3×3): inputs in [0, q] become at most 4·q or 128 + 2·q."""
    if not winograd.is_legal(ctx, F2):
        return False
    _, highest = int_range(ctx.layout(ctx.anchor.inputs[0]).dtype)
    largest = int(np.abs(winograd_transform(ctx.const(ctx.anchor, "w"), F2.m)).max())
    return 2 * max(4 * highest, WINOGRAD_OFFSET + 2 * highest) * largest <= INT16_MAX


def weigh_much(ctx: Context) -> bool:
    """Whether transformed weights of F(4×4, 3×3) leave every cache between inferences: two threads wait for them."""
    return ctx.const(ctx.anchor, "w").size >= _WEIGHING


class X86Vnni(CpuBackend):
    """AVX-512 with VNNI; code for the first CPU that had it, never for the building machine."""

    def __init__(self, target: Target) -> None:
        options = {"mtriple": _TRIPLE, "mcpu": "cascadelake", "mattr": "+fast-dpwssd"}
        super().__init__(
            target,
            options,
            [
                winograd_variant("winograd-2", Vnni(), F2),
                winograd_variant("winograd-2-rows", Vnni(), F2, emit=lambda ctx: winograd_rows.emit(ctx, F2)),
                direct_variant("vnni", Vnni(), emit=conv_vnni.emit),
                winograd_variant("winograd-4", Vnni(), F4),
                winograd_variant("winograd-4-inline", Vnni(), F4, emit=winograd_inline.emit),
                depthwise_variant(Vnni()),
                generic_variant(Vnni()),
            ],
        )


class X86Amx(CpuBackend):
    """AMX tiles for what is dense, AVX-512 VNNI for the rest."""

    def __init__(self, target: Target) -> None:
        # The tile registers come first on Sapphire Rapids, which also has
        # everything of the VNNI target.
        options = {"mtriple": _TRIPLE, "mcpu": "cascadelake", "mattr": "+amx-tile,+amx-int8,+gfni"}
        super().__init__(
            target,
            options,
            [
                Variant("amx-4bit", AMX, conv_tiles.may_pack, lambda ctx: conv_tiles.emit(ctx, nibbles=True)),
                Variant("amx", AMX, conv_tiles.is_legal, conv_tiles.emit),
                direct_variant("vnni", Vnni()),
                depthwise_variant(Vnni()),
                generic_variant(Vnni()),
            ],
        )

    def deploy(self, program: Program, prefix: str) -> Deployment:
        """Raises TargetError: an exported program does not ask for the tile registers."""
        raise TargetError(
            f"{self.target.name} cannot be exported: tile registers need the operating system's permission",
            hint="export for x86-vnni, which runs on the same processors",
        )

    def on(self, device: Device) -> Backend:
        """Raises DeviceError: a process elsewhere does not ask for the tile registers."""
        raise DeviceError(
            f"kernels for {self.target.name} cannot run on {device.host}: its server has no right to tile registers",
            hint="compile and measure on the device itself, or for x86-vnni",
        )

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        request_permission()
        return super().measure(works, threads)

    def load(self, directory: Path, graph: Graph) -> Executable:
        request_permission()
        return super().load(directory, graph)


class X86Avx2(CpuBackend):
    """AVX2 only: `vpmaddubsw` where it is proved not to saturate, else products of int16."""

    def __init__(self, target: Target) -> None:
        options = {"mtriple": _TRIPLE, "mcpu": "haswell"}
        # Without a dot product of bytes, multiply-adds saved are worth more than anything else.
        variants = [
            Variant(
                "winograd-2-maddubs", Avx2Saturating(), transformed_pairs_fit_int16, lambda ctx: winograd.emit(ctx, F2)
            ),
            winograd_variant("winograd-4-inline", _INT16, F4, weigh_much, winograd_inline.emit),
            winograd_variant("winograd-4", _INT16, F4),
            winograd_variant("winograd-2", Avx2(), F2),
            direct_variant("maddubs", Avx2Saturating(), pairs_fit_int16, conv_sums.emit),
            # A tile of 8 pixels leaves registers for weights, shuffles and products.
            direct_variant("maddubs-windows", Avx2Saturating(registers=10), emit=conv_pairs.emit_windows),
            direct_variant("maddubs-split", Avx2Saturating(), emit=conv_pairs.emit),
            # Two sums for each accumulator of a tile.
            direct_variant("maddubs-halves", Avx2Saturating(registers=8), emit=conv_sums.emit_halves),
            direct_variant("madd", Avx2()),
            depthwise_variant(Avx2()),
            generic_variant(Avx2()),
        ]
        super().__init__(target, options, variants)
