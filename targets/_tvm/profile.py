"""Timing kernels alone: warm caches, one at a time, median over repeated batches of calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qcompile.target.backend import Measurement
from qcompile.target.program import Kernel, Program
from targets._tvm.context import Emitted
from targets._tvm.library import build_bench, value_bytes
from targets._tvm.runner import aligned_array, open_library, pointer, set_threads

BATCHES = 11
BATCH_SECONDS = 1.5e-3


def measure_kernels(
    works: Sequence[tuple[Kernel, Program, Emitted]], options: Mapping[str, str], threads: int
) -> list[Measurement]:
    """Time each kernel on `threads` threads.

    A batch repeats the kernel inside native code for about 1.5 ms, so the clock and the call cost nothing;
    the result is the median of 11 batches.
    """
    if not works:
        return []
    set_threads(threads)
    found = []
    with TemporaryDirectory() as folder:
        bench = build_bench([e for _, _, e in works], options, Path(folder))
        library = open_library(bench.library)
        for (kernel, program, emitted), symbol in zip(works, bench.symbols, strict=True):
            buffers = []
            for argument in emitted.arguments:
                data = value_bytes(kernel, program, argument)
                buffer = aligned_array(data.size)
                buffer[:] = data
                buffers.append(buffer)
            found.append(_time(getattr(library, symbol), [pointer(b) for b in buffers], threads))
    return found


def _time(call: object, arguments: list[object], threads: int) -> Measurement:
    repeats = np.ones(1, dtype=np.int32)
    clock = time.perf_counter_ns

    def batch(n: int) -> float:
        repeats[0] = n
        start = clock()
        call(pointer(repeats), *arguments)  # type: ignore[operator]
        return (clock() - start) * 1e-9

    batch(2)
    count = 1
    while (spent := batch(count)) < BATCH_SECONDS / 2 and count < 1 << 24:
        count = max(count * 2, min(count * 64, int(count * BATCH_SECONDS / max(spent, 1e-7))))
    times = np.array([batch(count) for _ in range(BATCHES)]) / count
    return Measurement(float(np.median(times)), float(np.quantile(times, 0.9)), BATCHES * count, threads)
