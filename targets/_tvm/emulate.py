"""Running a library of another architecture: a driver without a C library, under an emulator."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qcompile.errors import DeviceError
from qcompile.ir import Array, Graph, storage
from qcompile.target.backend import Measurement
from qcompile.target.cost import cache_directory
from targets._tvm.cross import find_emulator, find_linker, run_compiler
from targets._tvm.runner import DESCRIPTION, ENTRY, LIBRARY, pack_parameters

_SOURCE = Path(__file__).parent / "driver" / "driver.c"
_FLAGS = (
    *("-std=gnu11", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-builtin"),
    *("-fno-tree-loop-distribute-patterns", "-fno-pie", "-no-pie", "-w", "-Wl,--build-id=none"),
)


class EmulatedExecutable:
    """A built program of another architecture.

    Args:
        directory: where the backend built it.
        graph: the integer graph it was built from.
        options: of the target; `emulator` and `linker` name programs.

    Raises:
        DeviceError: no emulator is installed.
        TargetError: no compiler for the driver is installed.
    """

    def __init__(self, directory: Path, graph: Graph, options: Mapping[str, str]) -> None:
        described = json.loads((directory / DESCRIPTION).read_text())
        self._params = pack_parameters(described, graph).tobytes()
        self._arena_bytes = int(described["arena_bytes"])
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]
        self._emulated = Emulated(directory / LIBRARY, options, ENTRY, len(self._inputs) + len(self._outputs))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        batch = len(inputs[0])
        ready = [
            np.ascontiguousarray(x, dtype=dtype).reshape(batch, *shape)
            for x, (shape, dtype) in zip(inputs, self._inputs, strict=True)
        ]
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._outputs]
        samples = [[x[i].tobytes() for x in ready] for i in range(batch)]
        records = self._emulated.call(self._params, self._arena_bytes, samples, sizes).reshape(batch, -1)
        results, start = [], 0
        for (shape, dtype), size in zip(self._outputs, sizes, strict=True):
            part = np.ascontiguousarray(records[:, start : start + size])
            results.append(part.view(dtype).reshape(batch, *shape))
            start += size
        return results

    def measure(self, threads: int, runs: int) -> Measurement:
        raise DeviceError(
            "an emulator's time says nothing about the device",
            hint="measure on the device itself, or estimate: the plan's costs are a roofline",
        )


class Emulated:
    """A library and the command that runs it: `entry(params, arena, arguments…)`, every parameter a pointer.

    Args:
        plugin: what to pass to the emulator's option `-plugin`.

    Attributes:
        said: what the last call wrote to its error stream.
    """

    def __init__(
        self, library: Path, options: Mapping[str, str], entry: str, arguments: int, plugin: str | None = None
    ) -> None:
        emulator = find_emulator(options)
        if emulator is None:
            name = options.get("emulator", "").split()
            raise DeviceError(
                f"{library.parent} is for {options.get('mtriple')}, which this machine is not"
                + (f", and there is no {name[0]} here to run it" if name else ""),
                hint="install qemu-user (Debian, Ubuntu), or run it on the device" if name else "run it on the device",
            )
        driver = _build_driver(options, entry, arguments)
        self.said = ""
        extra = [] if plugin is None else ["-plugin", plugin]
        self._command = [*emulator, *extra, str(driver), str(library.resolve())]

    def call(
        self, params: bytes, arena_bytes: int, samples: Sequence[Sequence[bytes]], outputs: Sequence[int]
    ) -> Array:
        """Call the entry once for each sample.

        Args:
            samples: the contents of the first arguments of each call; their sizes are the same every time.
            outputs: bytes of the other arguments.

        Returns:
            uint8: what the other arguments hold after each call, one after the other.
        """
        inputs = [len(x) for x in samples[0]]
        header = [len(params), arena_bytes, len(inputs), len(outputs), len(samples), 0, *inputs, *outputs]
        request = [np.array(header, dtype="<u4").tobytes(), params, *(x for sample in samples for x in sample)]
        done = subprocess.run(self._command, input=b"".join(request), capture_output=True, check=False)
        self.said = said = done.stderr.decode(errors="replace").strip()[-500:]
        expected = len(samples) * sum(outputs)
        if done.returncode or len(done.stdout) != expected:
            raise DeviceError(
                f"the emulated program ended with status {done.returncode} after {len(done.stdout)} of {expected} "
                f"bytes{': ' + said if said else ''}"
            )
        return np.frombuffer(done.stdout, dtype=np.uint8)


def _build_driver(options: Mapping[str, str], entry: str, arguments: int) -> Path:
    """The driver that calls `entry` with so many arguments; compiled once and kept in the cache folder."""
    command = [*find_linker(options), *_FLAGS]
    called = f"entry({', '.join(f'a[{i}]' for i in range(arguments + 2))})"
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(repr((command, entry, called)).encode() + source).hexdigest()[:16]
    path = cache_directory() / "drivers" / key
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / "driver"
        defined = [f'-DENTRY="{entry}"', f"-DARGUMENTS={arguments}", f"-DCALL={called}"]
        run_compiler([*command, *defined, str(_SOURCE), "-lgcc", "-o", str(built)], "the emulator's driver")
        os.replace(built, path)
    return path
