"""Costs of kernels for GPUs where nothing can be measured: they follow bytes, multiply-adds and instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from op_cases import Cases

from passes.lower.plan_memory import plan_program
from qcompile.pm.registry import find_target
from qcompile.target.backend import Estimating
from qcompile.target.program import Kernel, Program
from targets.cuda import printer
from targets.cuda.backend import CudaBackend
from targets.cuda.count import Count
from targets.cuda.devices import DEVICES
from targets.cuda.estimate import LAUNCH_SECONDS
from targets.cuda.target import ARCHITECTURES, CUDA_SM_75, CUDA_SM_80


def linear(bits: int) -> Program:
    """A layer of 16 MiB of weights at 8 bits, four times the far cache of a T4."""
    cases = Cases()
    x = cases.op("reshape", cases.input(4096), shape=(-1, 4096))
    cases.show(cases.requant(cases.linear(x, 4096, bits), reach=1 << 20))
    return plan_program(cases.graph(), CUDA_SM_75)


def convolution(channels: int) -> tuple[Kernel, Program]:
    cases = Cases()
    x = cases.image(channels, 28, 28)
    cases.show(
        cases.requant(cases.conv(x, channels, (1, 1), stride=(1, 1), dilation=(1, 1), pad=(0, 0, 0, 0), pad_value=0))
    )
    program = plan_program(cases.graph(), CUDA_SM_80)
    return next(k for k in program.kernels if k.anchor.op == "conv2d"), program


def seconds(program: Program, target: str = "cuda:sm_75") -> float:
    backend = CudaBackend(find_target(target))
    assert isinstance(backend, Estimating)
    kernel = next(k for k in program.kernels if k.anchor.op in ("linear", "conv2d"))
    return backend.estimate(replace(kernel, variant=backend.variants(kernel, program)[0]), program)


def test_bytes_of_weights_decide_where_memory_is_the_limit() -> None:
    """Packed weights of 4 bits take half the time of 8 bits, and that is what the memory needs for them."""
    eight, four = seconds(linear(8)), seconds(linear(4))
    assert eight == pytest.approx(LAUNCH_SECONDS + (1 << 24) / DEVICES["sm_75"].memory_bytes_per_second, rel=0.05)
    assert (four - LAUNCH_SECONDS) / (eight - LAUNCH_SECONDS) == pytest.approx(0.5, rel=0.05)


def test_counts_multiply_adds_of_a_kernel() -> None:
    """The matrix instructions of all blocks are the layer's multiply-adds, rounded up to whole tiles."""
    kernel, program = convolution(128)
    backend = CudaBackend(CUDA_SM_80)
    name = next(v for v in backend.variants(kernel, program) if v.startswith("mma"))
    emitted = backend.emit(replace(kernel, variant=name), program)
    printed = printer.Kernel(emitted.func)
    count = Count(printed.func)
    macs = printed.blocks * 4 * count.mma * 16 * 8 * 32
    assert 128 * 128 * 28 * 28 <= macs <= 1.5 * 128 * 128 * 28 * 28
    assert count.shared_size > 0 and count.barriers > 0 and count.global_bytes > 0


def test_nothing_is_faster_than_a_launch() -> None:
    kernel, program = convolution(16)
    for architecture in ARCHITECTURES:
        backend = CudaBackend(find_target(f"cuda:{architecture}"))
        for variant in backend.variants(kernel, program):
            assert backend.estimate(replace(kernel, variant=variant), program) > LAUNCH_SECONDS


def test_more_work_takes_longer() -> None:
    times = []
    for channels in (64, 256, 1024):
        kernel, program = convolution(channels)
        backend = CudaBackend(CUDA_SM_80)
        times.append(backend.estimate(replace(kernel, variant=backend.variants(kernel, program)[0]), program))
    assert times == sorted(times) and times[2] > 2 * times[0]
