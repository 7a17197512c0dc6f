"""A CPU backend whose kernels and programs run on devices behind TVM's RPC."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from qcompile.errors import DeviceError
from qcompile.ir import Array, Graph, Grid, storage
from qcompile.target.backend import Measurement, enough_runs
from qcompile.target.device import Device
from qcompile.target.program import Kernel, Program
from targets._tvm.context import Emitted
from targets._tvm.profile import BATCH_SECONDS, BATCHES, ROUNDS, bench_arguments
from targets._tvm.rpc import RemoteSession, devices_behind, session
from targets._tvm.rpc_library import Upload, wrap
from targets._tvm.runner import DESCRIPTION, LIBRARY, pack_parameters

if TYPE_CHECKING:
    from targets._tvm.cpu import CpuBackend

Work = tuple[Kernel, Program]


class RpcBackend:
    """`qcompile.target.backend.Backend`; what needs no device is the local backend's.

    Args:
        local: the code generator.
        device: reached on first use only.
    """

    def __init__(self, local: CpuBackend, device: Device) -> None:
        self.local, self.device = local, device
        self.target = local.target

    def fingerprint(self) -> str:
        return self.local.fingerprint()

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        return self.local.variants(kernel, program)

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        return self.local.build(program, directory)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        return self.local.float_operations(directory, program)

    def load(self, directory: Path, graph: Graph) -> RpcExecutable:
        return RpcExecutable(directory, graph, self.local.options, self.device)

    def measure(self, works: Sequence[Work], threads: int) -> list[Measurement]:
        """As the interface defines; several devices behind a tracker share the works.

        Raises:
            DeviceError: no device is left; its `measured` holds what was measured until then.
        """
        if not works:
            return []
        emitted = [self.local.emit(kernel, program) for kernel, program in works]
        with TemporaryDirectory() as folder:
            bench = self.local.build_bench(emitted, Path(folder))
            library = bench.library.read_bytes()
        counts = {symbol: 1 + len(e.arguments) for symbol, e in zip(bench.symbols, emitted, strict=True)}
        upload = wrap(counts, library, self.local.options, bench=True)
        jobs = [(kernel, program, e, s) for (kernel, program), e, s in zip(works, emitted, bench.symbols, strict=True)]
        return _Sharing(self.device, upload, jobs, threads).run()


class _Sharing:
    """Jobs taken by several devices, each job done once."""

    def __init__(
        self,
        device: Device,
        upload: Upload,
        jobs: Sequence[tuple[Kernel, Program, Emitted, str]],
        threads: int,
    ) -> None:
        self.device, self.upload, self.jobs, self.threads = device, upload, jobs, threads
        self.waiting = deque(range(len(jobs)))
        self.found: dict[int, Measurement] = {}
        self.failures: list[DeviceError] = []
        self.defects: list[Exception] = []
        self.lock = threading.Lock()

    def run(self) -> list[Measurement]:
        takers = min(devices_behind(self.device), len(self.jobs))
        pool = [threading.Thread(target=self._serve, daemon=True) for _ in range(takers)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        if self.defects:
            raise self.defects[0]
        if self.waiting or len(self.found) < len(self.jobs):
            failure = self.failures[0]
            failure.measured = [self.found.get(i) for i in range(len(self.jobs))]
            raise failure
        return [self.found[i] for i in range(len(self.jobs))]

    def _serve(self) -> None:
        """One device works until nothing is left; a job it fails at goes back to the others."""
        taken: int | None = None
        try:
            with session(self.device) as remote:
                module = remote.load(self.upload)
                remote.ask("threads", self.threads)
                while True:
                    with self.lock:
                        taken = self.waiting.popleft() if self.waiting else None
                    if taken is None:
                        return
                    kernel, program, emitted, symbol = self.jobs[taken]
                    arguments = bench_arguments(kernel, program, emitted)
                    measured = time_kernel(remote, module, symbol, *arguments, self.threads)
                    with self.lock:
                        self.found[taken] = measured
        except DeviceError as error:
            with self.lock:
                self.failures.append(error)
                if taken is not None:
                    self.waiting.appendleft(taken)
        except Exception as error:  # of ours: raised again in the thread that waits
            with self.lock:
                self.defects.append(error)


def time_kernel(
    remote: RemoteSession, module: str, symbol: str, control: Array, buffers: Sequence[Array], threads: int
) -> Measurement:
    """One kernel on a device, as `targets._tvm.profile` does here: the quickest of the rounds' medians."""
    numbers = remote.numbers(1 + len(buffers))
    for number, array in zip(numbers[1:], buffers, strict=True):
        remote.ask("store", number, array)

    def batches(calls: int, repeat: int) -> list[float]:
        control[0] = calls
        remote.ask("store", numbers[0], control.view(np.uint8))
        return [float(s) for s in remote.ask("time", module, symbol, numbers, 1, repeat)]

    count = 1
    while (spent := batches(count, 1)[0]) < BATCH_SECONDS / 2 and count < 1 << 24:
        count = max(count * 2, min(count * 64, int(count * BATCH_SECONDS / max(spent, 1e-7))))
    rounds = [np.array(batches(count, BATCHES)) / count for _ in range(ROUNDS)]
    best = min(rounds, key=lambda times: float(np.median(times)))
    remote.ask("free", numbers)
    return Measurement(float(np.median(best)), float(np.quantile(best, 0.9)), BATCHES * count, threads)


class RpcExecutable:
    """A built program on a device, loaded with the first call.

    Args:
        directory: where the backend built it.
        graph: the integer graph it was built from.
        options: of the target's backend, which name its linker.
        device: where it runs.
    """

    def __init__(self, directory: Path, graph: Graph, options: Mapping[str, str], device: Device) -> None:
        described = json.loads((directory / DESCRIPTION).read_text())
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]
        self._entry: str = described["entry"]
        count = 2 + len(self._inputs) + len(self._outputs)
        self._upload = wrap({self._entry: count}, (directory / LIBRARY).read_bytes(), options, bench=False)
        self._params = pack_parameters(described, graph)
        self._arena_bytes = int(described["arena_bytes"])
        self._device = device

    @contextmanager
    def _loaded(self) -> Iterator[_Loaded]:
        """The device with the library, the parameters and room for values in its memory."""
        ports = [*self._inputs, *self._outputs]
        sizes = [self._arena_bytes, *(int(np.prod(shape)) * dtype.itemsize for shape, dtype in ports)]
        with session(self._device) as remote:
            module = remote.load(self._upload)
            numbers = remote.numbers(1 + len(sizes))
            remote.ask("store", numbers[0], self._params)
            for number, size in zip(numbers[1:], sizes, strict=True):
                remote.ask("store", number, np.zeros(size, dtype=np.uint8))
            yield _Loaded(remote, module, self._entry, numbers)
            remote.ask("free", numbers)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        batch, first = len(inputs[0]), 2 + len(self._inputs)
        results = [np.zeros((batch, *shape), dtype=dtype) for shape, dtype in self._outputs]
        with self._loaded() as there:
            for i in range(batch):
                for number, x, (_, dtype) in zip(there.numbers[2:first], inputs, self._inputs, strict=True):
                    sample = np.ascontiguousarray(x[i], dtype=dtype).reshape(-1)
                    there.remote.ask("store", number, sample.view(np.uint8))
                there.remote.ask("call", there.module, there.entry, there.numbers)
                for number, result in zip(there.numbers[first:], results, strict=True):
                    raw = np.asarray(there.remote.ask("fetch", number), dtype=np.uint8)
                    result[i] = raw.view(result.dtype).reshape(result.shape[1:])
        return list(results)

    def quantize(self, x: Array, grid: Grid) -> Array | None:
        return None

    def measure(self, threads: int, runs: int) -> Measurement:
        """Timed on the device's clock; a run is an average over enough calls to make the clock exact."""
        with self._loaded() as there:
            there.remote.ask("threads", threads)
            (once,) = there.times(1, 1)
            runs = runs or enough_runs(once)
            number = max(1, runs // BATCHES)
            times = np.array(there.times(number, BATCHES))
        return Measurement(float(np.median(times)), float(np.quantile(times, 0.9)), number * BATCHES, threads)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A program in a session: its module, its entry, and its arguments in order."""

    remote: RemoteSession
    module: str
    entry: str
    numbers: list[int]

    def times(self, number: int, repeat: int) -> list[float]:
        """`repeat` averages of `number` calls, seconds."""
        return [float(s) for s in self.remote.ask("time", self.module, self.entry, self.numbers, number, repeat)]
