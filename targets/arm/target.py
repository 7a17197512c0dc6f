"""The 32-bit Arm target as data."""

from __future__ import annotations

from qcompile.target.model import Target

ARM_NEON = Target(
    name="arm-neon",
    summary="32-bit Arm with NEON (Armv7-A): Cortex-A7, A9, A15 and later",
    backend="targets.arm.backend:ArmNeon",
    # As on AArch64 without dot products.
    weight_steps=(2, 3, 4, 5, 6, 8),
    act_steps=(4, 5, 6, 7, 8),
    channel_block=16,
    architecture="arm",
    toolchain="targets._tvm.cross:toolchain",
    features=("neon",),
    options={
        "linker": "arm-linux-gnueabihf-gcc|ziglang cc -target arm-linux-gnueabihf -mcpu=cortex_a7",
        "linker_hint": "install gcc-arm-linux-gnueabihf (Debian, Ubuntu) or the Python package ziglang",
        "emulator": "qemu-arm -cpu max",
    },
    # 16 multiply-adds in three instructions of two cycles each, about 1 GHz.
    peak_macs_per_second=16 / 6 * 1e9,
    bytes_per_second=1.5e9,
)
