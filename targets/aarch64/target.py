"""The AArch64 targets as data."""

from __future__ import annotations

from qcompile.target.model import Target

_TOOLS = {
    "linker": "aarch64-linux-gnu-gcc|ziglang cc -target aarch64-linux-gnu",
    "linker_hint": "install gcc-aarch64-linux-gnu (Debian, Ubuntu) or the Python package ziglang",
    "emulator": "qemu-aarch64 -cpu max",
}

AARCH64_NEON = Target(
    name="aarch64-neon",
    summary="AArch64 with NEON: Cortex-A53, A72 (Raspberry Pi 3 and 4) and all others",
    backend="targets.aarch64.backend:AArch64Neon",
    # More products of fewer bits fit int16 before they are widened; up to 7 bits no input is shifted.
    weight_steps=(2, 3, 4, 5, 6, 8),
    act_steps=(4, 5, 6, 7, 8),
    channel_block=16,
    architecture="aarch64",
    toolchain="targets._tvm.cross:toolchain",
    features=("asimd",),
    options=_TOOLS,
    # 16 multiply-adds in three instructions, two a cycle, about 1.5 GHz.
    peak_macs_per_second=16 / 3 * 2 * 1.5e9,
    bytes_per_second=4e9,
)

AARCH64_DOTPROD = Target(
    name="aarch64-dotprod",
    summary="AArch64 with SDOT (Armv8.2): Cortex-A55, A76 (Raspberry Pi 5), Neoverse N1 and later",
    backend="targets.aarch64.backend:AArch64Dotprod",
    # Exact Winograd F(2,3) as on x86; activations of 7 bits need no shift to int8.
    weight_steps=(4, 5, 8),
    act_steps=(6, 7, 8),
    channel_block=16,
    architecture="aarch64",
    toolchain="targets._tvm.cross:toolchain",
    features=("asimd", "asimddp"),
    options=_TOOLS,
    # 16 multiply-adds an instruction, two a cycle, about 2 GHz.
    peak_macs_per_second=16 * 2 * 2e9,
    bytes_per_second=8e9,
)

AARCH64_I8MM = Target(
    name="aarch64-i8mm",
    summary="AArch64 with USMMLA (Armv8.6): Cortex-A510, A710, X2, Neoverse N2, V1 and later",
    backend="targets.aarch64.backend:AArch64I8mm",
    weight_steps=(4, 5, 8),
    act_steps=(6, 8),
    channel_block=16,
    architecture="aarch64",
    toolchain="targets._tvm.cross:toolchain",
    features=("asimd", "asimddp", "i8mm"),
    options=_TOOLS,
    # 32 multiply-adds an instruction, two a cycle, about 2.5 GHz.
    peak_macs_per_second=32 * 2 * 2.5e9,
    bytes_per_second=15e9,
)
