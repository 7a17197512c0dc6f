"""The x86-64 targets as data."""

from __future__ import annotations

from qcompile.target.model import Target

X86_VNNI = Target(
    name="x86-vnni",
    summary="x86-64 with AVX-512 VNNI (vpdpbusd): Cascade Lake, Zen 4 and later",
    backend="targets.x86_64.backend:X86Vnni",
    runtime="targets._tvm.runner:LibraryExecutable",
    # Exact Winograd F(2,3) needs activations of at most 6 bits and weights of at most 5 (4 always fit).
    weight_steps=(4, 5, 8),
    act_steps=(6, 8),
    channel_block=16,
    architecture="x86_64",
    toolchain="targets._tvm.cross:toolchain",
    features=("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    # 64 multiply-adds an instruction, one instruction a cycle, about 3 GHz.
    peak_macs_per_second=64 * 3e9,
    bytes_per_second=20e9,
    winograd_inputs=63,
    winograd_weights=127,
)

X86_AMX = Target(
    name="x86-amx",
    summary="x86-64 with Intel AMX (tdpbusd on tile registers): Sapphire Rapids and later",
    backend="targets.x86_64.backend:X86Amx",
    runtime="targets.x86_64.permission:load",
    # Direct convolution on tiles is faster than any Winograd on vectors, for all widths of activations.  Weights of at
    # most 4 bits take half as long to read, where there are more of them than the near caches hold.
    weight_steps=(4, 8),
    channel_block=16,
    architecture="x86_64",
    toolchain="targets._tvm.cross:toolchain",
    features=("amx_int8", "amx_tile", "gfni", *X86_VNNI.features),
    # 16384 multiply-adds an instruction, one instruction in 16 cycles, about 3 GHz.
    peak_macs_per_second=1024 * 3e9,
    bytes_per_second=20e9,
)

X86_AVX2 = Target(
    name="x86-avx2",
    summary="x86-64 with AVX2: Haswell, Zen and later",
    backend="targets.x86_64.backend:X86Avx2",
    runtime="targets._tvm.runner:LibraryExecutable",
    # Two products of 8-bit activations and 7-bit weights fit 16 bits; 4-bit operands may be summed there.
    weight_steps=(4, 7, 8),
    act_steps=(4, 8),
    channel_block=16,
    architecture="x86_64",
    toolchain="targets._tvm.cross:toolchain",
    features=("avx2",),
    # Two 16-bit multiply-add instructions a cycle, 16 multiply-adds each, half of the time widening.
    peak_macs_per_second=16 * 3e9,
    bytes_per_second=20e9,
)
