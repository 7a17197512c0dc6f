"""The interface between the framework and a machine.  Implementations live in `targets/` (the only home of TVM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from qcompile.ir import Array, Graph, Grid
from qcompile.target.program import Kernel, Program


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of one call: median and spread over `runs` timed calls, and the conditions.

    Attributes:
        median, p90, runs: of the calls.
        threads: how many.
        clock: seconds of `qcompile.target.clock.probe` meanwhile; 0 where it was not taken.
    """

    median: float
    p90: float
    runs: int
    threads: int
    clock: float = 0.0

    def at(self, clock: float) -> Measurement:
        """What it would have been while the probe took `clock` seconds; unchanged where either is unknown."""
        if not (clock and self.clock):
            return self
        scale = clock / self.clock
        return replace(self, median=self.median * scale, p90=self.p90 * scale, clock=clock)


def enough_runs(seconds: float) -> int:
    """How many calls of about `seconds` make a steady median: half a second's worth, 20 to 2000."""
    return int(min(2000, max(20, 0.5 / max(seconds, 1e-9))))


class Executable(Protocol):
    """A built program, loaded and ready to run."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Row-major integer arrays with a batch dimension, in the order of the graph's inputs and outputs."""

    def measure(self, threads: int, runs: int) -> Measurement:
        """Time single-sample calls end to end, from integer input to integer output; runs=0 chooses how many."""


@runtime_checkable
class Quantizing(Protocol):
    """An executable that also makes the integers of its inputs, faster than NumPy can."""

    def quantize(self, x: Array, grid: Grid) -> Array | None:
        """What `qcompile.semantics.grids.quantize` gives for contiguous float32.

        None where an element is not finite, or the grid is one it does not know.
        """


@runtime_checkable
class Threaded(Protocol):
    """An executable that shares its work among threads of this process."""

    def use_threads(self, threads: int) -> None:
        """Run on so many threads from now on; at first on one."""


@runtime_checkable
class Estimating(Protocol):
    """A backend that knows more of its kernels than a roofline does, for where nothing can be measured."""

    def estimate(self, kernel: Kernel, program: Program) -> float:
        """Seconds of a kernel (its `variant` is set) for one sample, launch included; never measured."""


@runtime_checkable
class Apart(Protocol):
    """A backend whose code does not run on this machine's processor but on a device in it."""

    def device_name(self) -> str:
        """The device, in the keys of measurements.

        Raises:
            DeviceError: there is none.
        """


class Backend(Protocol):
    """One machine's code generator.  Every result equals `qcompile.semantics.interp` bit for bit.

    The class named by `Target.backend` is constructed with the Target as its only argument.
    """

    def fingerprint(self) -> str:
        """Compiler version, instruction set and a hash of the kernel generator's source.

        Measurements of another one do not count.
        """

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        """Implementations that are legal for this kernel and these weights (proved by ranges), preferred first."""

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        """Time each kernel (its `variant` is set) alone on the device, batch 1.

        Parameters are as far from the processor as in the whole program (`Program.resident`); values are where
        the kernel before would have left them.  May build several in parallel and measures them one at a time.
        """

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        """Write `library.so` and `kernels.json` into `directory`; equal programs give equal bytes.

        `kernels.json` says how `load` brings each constant of the integer graph into the order its kernel reads
        (a recipe name and the kernel's parameters); weights themselves are not written here: the artifact holds the
        graph's constants once, packed at their real width.

        Returns:
            Facts for the manifest (compiler version, target string, entry point), all deterministic.
        """

    def load(self, directory: Path, graph: Graph) -> Executable:
        """Load what `build` wrote; needs NumPy and the TVM runtime only.  `graph` is the integer graph."""

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        """Floating-point operations in the machine code of `library.so` and, where the program is given (it is at
        build time and in `verify`, which lowers the graph again), in its TIR; empty where there are none."""
