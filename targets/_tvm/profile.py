"""Timing kernels alone, in the state of the caches they meet in their program.

Values are where the kernel before left them: the same buffers are used again and again.  Parameters are read once in
each inference, so between two uses all other parameters of the program pass through the caches; calls therefore go
through enough copies of the kernel's own parameters to make up for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qcompile.ir import Array
from qcompile.target.backend import Measurement
from qcompile.target.clock import probe
from qcompile.target.program import Kernel, Program
from qcompile.target.turns import confirmed, most_credible
from targets._tvm.context import Constant, Emitted
from targets._tvm.library import Bench, build_bench, value_bytes
from targets._tvm.runner import SLACK, aligned, aligned_array, open_library, pointer
from targets._tvm.threads import set_threads, write_threads

ROUNDS, MOST_ROUNDS = 3, 10
"""Turns of a kernel, some time apart: what disturbs one turn is over by the next.  On a busy machine there are more."""

AGREEMENT = 0.03
"""Two turns of a kernel differ by less once nothing disturbed them."""

BATCHES = 5
BATCH_SECONDS = 1.2e-3


def _build_with_threads(emitted: Sequence[Emitted], options: Mapping[str, str], directory: Path) -> Bench:
    """`build_bench`, with what shares loops on this machine."""
    bench = build_bench(emitted, options, directory)
    write_threads(options, directory)
    return bench


def measure_kernels(
    works: Sequence[tuple[Kernel, Program, Emitted]],
    options: Mapping[str, str],
    threads: int,
    build: Callable[[Sequence[Emitted], Mapping[str, str], Path], Bench] = _build_with_threads,
) -> list[Measurement]:
    """Time each kernel on `threads` threads; `build` makes the library of repeating callers.

    A batch repeats the kernel inside native code for about a millisecond, so the clock and the call cost nothing;
    a turn is the median of its batches, and the result the quickest turn that another one confirms.
    """
    if not works:
        return []
    with TemporaryDirectory() as folder:
        bench = build([e for _, _, e in works], options, Path(folder))
        library = open_library(bench.library)
        set_threads(threads)
        calls = [_Call.of(getattr(library, s), *work) for s, work in zip(bench.symbols, works, strict=True)]
        return quickest_turns([partial(call.time, threads) for call in calls])


def quickest_turns(timers: Sequence[Callable[[], Measurement]]) -> list[Measurement]:
    """The quickest confirmed turn of each kernel, all at one clock; where no two turns agree, more are taken.

    Args:
        timers: each takes one turn of its kernel.
    """
    turns: list[list[Measurement]] = [[] for _ in timers]
    for number in range(MOST_ROUNDS):
        for timer, own in zip(timers, turns, strict=True):
            if number < ROUNDS or confirmed(own, own[0].clock, AGREEMENT) is None:
                own.append(timer())
    clock = min(turn.clock for own in turns for turn in own)
    return [most_credible(own, clock, AGREEMENT) for own in turns]


def bench_arguments(kernel: Kernel, program: Program, emitted: Emitted) -> tuple[Array, list[Array]]:
    """The control array and the other arguments, all copies, of a kernel's repeating caller (`library.Bench`)."""
    contents = [value_bytes(kernel, program, argument) for argument in emitted.arguments]
    is_constant = [isinstance(argument, Constant) for argument in emitted.arguments]
    parameters = sum(aligned(data.size) for data, c in zip(contents, is_constant, strict=True) if c)
    copies = max(1, -(-program.resident // parameters)) if parameters else 1
    control = np.array([1, copies, 0, *([0] * len(contents))], dtype=np.int32)
    buffers = []
    for n, (data, constant) in enumerate(zip(contents, is_constant, strict=True)):
        stride, count = aligned(data.size), copies if constant else 1
        buffer = aligned_array(count * stride + SLACK)
        buffer[: count * stride].reshape(count, stride)[:, : data.size] = data
        control[3 + n] = stride if constant else 0
        buffers.append(buffer)
    return control, buffers


@dataclass
class _Call:
    """A repeating caller and its arguments.

    Attributes:
        function: `bench<i>` of a `Bench`.
        control: its first argument.
        buffers: its others, all copies.
    """

    function: Callable[..., Any]
    control: Array
    buffers: list[Array]

    @staticmethod
    def of(function: Callable[..., Any], kernel: Kernel, program: Program, emitted: Emitted) -> _Call:
        return _Call(function, *bench_arguments(kernel, program, emitted))

    def batch(self, calls: int) -> float:
        """Seconds of so many calls."""
        self.control[0] = calls
        arguments = [pointer(array) for array in (self.control, *self.buffers)]
        start = time.perf_counter_ns()
        self.function(*arguments)
        spent = (time.perf_counter_ns() - start) * 1e-9
        self.control[2] = (int(self.control[2]) + calls) % int(self.control[1])
        return spent

    def time(self, threads: int) -> Measurement:
        """One turn."""
        self.batch(2)
        count = 1
        while (spent := self.batch(count)) < BATCH_SECONDS / 2 and count < 1 << 24:
            count = max(count * 2, min(count * 64, int(count * BATCH_SECONDS / max(spent, 1e-7))))
        before = probe()
        times = np.array([self.batch(count) for _ in range(BATCHES)]) / count
        clock = min(before, probe())
        median, p90 = float(np.median(times)), float(np.quantile(times, 0.9))
        return Measurement(median, p90, BATCHES * count, threads, clock)
