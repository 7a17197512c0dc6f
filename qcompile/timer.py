"""End-to-end times of programs, each beside uniform 8 bits, kept in the cost cache."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompile.compiler import Compiler
from qcompile.pm.facts import COSTS, Bits
from qcompile.target.backend import Executable, Measurement
from qcompile.target.clock import probe_long
from qcompile.target.program import Program, ProgramWork, work_of_program
from qcompile.timing import calls_for, time_beside, time_executable, time_steady, turn_of

log = logging.getLogger("qcompile")

NOISE = 0.03
"""By how much two measurements of the same program may differ."""

UNIFORM: Bits = (8, 8)


@dataclass
class Timer:
    """End-to-end times of programs on this machine, kept in the cost cache.

    Everything is timed beside uniform 8 bits in the kernels the backend prefers (`qcompile.timing`): the yardstick.

    Args:
        compiler: whose network and target it is; its calibration is done.
        stage: opened with a name around everything that takes a while.
        moved: how often the yardstick was found to be quicker than was known: all seconds before were too many.
        pace: what a second of the cost cache takes at the clock of this moment, at least 1.
    """

    compiler: Compiler
    stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    moved: int = 0
    pace: float = 1.0
    _reference: list[float | None] = field(default_factory=list)
    _lowered: list[Program] = field(default_factory=list)
    _yardstick: list[Program] = field(default_factory=list)
    _standard: list[Executable] = field(default_factory=list)

    def seconds(self, program: Program, limit: float | None = None) -> float | None:
        """Of one inference at the clock of the cost cache; measured where it is not known.

        None where nothing can be measured here.

        Args:
            limit: seconds that decide something; near them it is measured longer.
        """
        if self.compiler.costs is None:
            return None
        known = self._known(work_of_program(program))
        if known is None:
            with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
                known = self.time(program, self._built(program, folder), limit).median
        return known

    def look_at_clock(self) -> None:
        """Set the pace.

        A budget is kept at the clock of the cost cache and at this moment's: whichever is slower.
        """
        known = 0.0 if self.compiler.costs is None else self.compiler.costs.clock()
        if known:  # Devices that are apart keep no clock.
            self.pace = max(1.0, probe_long() / known)

    def time(self, program: Program, executable: Executable, limit: float | None = None) -> Measurement:
        """Time a built program and keep the result; what is known already stands unless it is off by `NOISE`.

        A compilation that is repeated so finds the same.  Where no limit has to be kept, what was timed beside the
        yardstick before is not timed again.
        """
        compiler, costs = self.compiler, self.compiler.costs
        work, threads, standard = work_of_program(program), compiler.threads, self._standard_seconds()
        if limit is None and costs is not None and (noted := self._noted(work)) is not None:
            return _measurement(noted["ratio"] * standard, noted, threads, costs.clock())
        if costs is None:
            with self.stage("measure"):
                return time_executable(executable, threads, limit)
        if work.key == work_of_program(self._yard()).key:
            with self.stage("measure"):
                alone = time_steady(executable, threads).at(costs.clock())
            return replace(alone, median=self._quieter(alone.median))
        with self.stage("measure"):
            first = executable.measure(threads, 3)
            found = time_beside(
                turn_of(executable, threads), turn_of(self._standard_executable(), threads),
                (calls_for(first.median), calls_for(standard)), None if limit is None else limit / standard,
                costs.clock(),
            )  # fmt: skip
        seconds = found.ratio * self._quieter(found.reference)
        seen = {"ratio": found.ratio, "error": found.error, "rounds": len(found.ratios)}
        known = self._known(work)
        if known is None or abs(seconds / known - 1) > NOISE:
            kept = Measurement(seconds, seconds, len(found.ratios), threads)
            costs.put(work, compiler.backend.fingerprint(), kept, {**seen, "quietest": found.own})
            known = seconds
        return _measurement(known, seen, threads, first.clock)

    def _noted(self, work: ProgramWork) -> dict[str, Any] | None:
        """What was found when a program was timed beside the yardstick, None where it was not."""
        compiler = self.compiler
        if compiler.costs is None:
            return None
        noted = compiler.costs.conditions(work, compiler.threads, compiler.backend.fingerprint())
        return noted if noted is not None and "ratio" in noted else None

    def _known(self, work: ProgramWork) -> float | None:
        """Seconds kept of a program: as a ratio to the yardstick where it was timed beside it."""
        costs, threads, version = self.compiler.costs, self.compiler.threads, self.compiler.backend.fingerprint()
        if costs is None:
            return None
        if (noted := self._noted(work)) is not None:
            return float(noted["ratio"]) * self._standard_seconds()
        known = costs.get_many([work], threads, version)
        return known[work.key].median if known else None

    def _yard(self) -> Program:
        from passes.lower.choose_kernels import preferred

        if not self._yardstick:
            self._yardstick.append(preferred(self._uniform(), self.compiler.backend))
        return self._yardstick[0]

    def _standard_executable(self) -> Executable:
        if not self._standard:
            folder = tempfile.mkdtemp(prefix="qcompile-")
            # A library may be read for as long as it is used.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._standard.append(self._built(self._yard(), folder))
        return self._standard[0]

    def _standard_seconds(self) -> float:
        """Of the yardstick."""
        costs, threads, version = self.compiler.costs, self.compiler.threads, self.compiler.backend.fingerprint()
        if costs is None:
            return 1.0
        work = work_of_program(self._yard())
        known = costs.get_many([work], threads, version)
        if not known:
            executable = self._standard_executable()
            with self.stage("measure"):
                costs.put(work, version, time_steady(executable, threads))
            known = costs.get_many([work], threads, version)
        return known[work.key].median

    def _quieter(self, seen: float) -> float:
        """The yardstick's seconds, corrected where a round was quieter than the measurement that was kept."""
        known, costs = self._standard_seconds(), self.compiler.costs
        if costs is None or seen >= known * (1 - NOISE):
            return known
        log.info("uniform 8 bits take %.4g ms: they were timed while the machine was busy", 1e3 * seen)
        lower = Measurement(seen, seen, 1, self.compiler.threads)
        costs.put(work_of_program(self._yard()), self.compiler.backend.fingerprint(), lower)
        self._reference.clear()
        self.moved += 1
        return seen

    def _built(self, program: Program, folder: str) -> Executable:
        with self.stage("build"):
            self.compiler.backend.build(program, Path(folder))
            return self.compiler.backend.load(Path(folder), program.graph)

    def settled(self, program: Program) -> Program:
        """The program, or the same with preferred kernels throughout where that is faster end to end.

        A kernel timed alone knows what its own parameters do to the caches, not what those of all others do.
        """
        from passes.lower.choose_kernels import preferred

        plain = preferred(program, self.compiler.backend)
        return plain if plain.kernels != program.kernels and self._quicker(plain, program) else program

    def _quicker(self, plain: Program, program: Program) -> bool:
        """Whether `plain` takes less time; what was found once stays, though either is timed again later.

        Otherwise two compilations of the same network could differ where both take about the same.
        """
        costs, threads, version = self.compiler.costs, self.compiler.threads, self.compiler.backend.fingerprint()
        if costs is None:
            return False
        pair = ProgramWork((work_of_program(plain).key, work_of_program(program).key))
        noted = costs.conditions(pair, threads, version)
        if noted is None:
            chosen, simple = self.seconds(program), self.seconds(plain)
            if chosen is None or simple is None:
                return False
            noted = {"plain": simple, "chosen": chosen}
            costs.put(pair, version, Measurement(min(simple, chosen), max(simple, chosen), 1, threads), noted)
        return bool(noted["plain"] < noted["chosen"])

    def reference(self) -> float | None:
        """Seconds of the network at uniform 8 bits, which every plan is compared with."""
        if not self._reference:
            known = self.compiler.costs is not None
            self._reference.append(self.seconds(self.settled(self._uniform())) if known else None)
        return self._reference[0]

    def _uniform(self) -> Program:
        """Uniform 8 bits, lowered once: nothing that a compilation decides later changes it."""
        if not self._lowered:
            compiler = self.compiler
            # The target as it is, not only the bits this compilation was asked to choose from.
            whole = replace(
                compiler, pins={}, protect=(), weight_bits=None, act_bits=None, rounding="nearest", reports={}
            )
            whole.target, whole.graph = compiler.whole_target, compiler.graph
            whole.uniform(UNIFORM)
            with self.stage("round"):
                self._lowered.append(whole.lower())
        return self._lowered[0]

    def correction(self) -> float:
        """Measured over predicted seconds of uniform 8 bits: 1 where either is unknown."""
        compiler, table = self.compiler, self.compiler.graph.notes.get(COSTS)
        if table and all(UNIFORM in table[layer].seconds for layer in table):
            predicted = compiler.predicted_seconds(dict.fromkeys((layer for layer in table if layer), UNIFORM))
        else:
            predicted = None if compiler.costs is None else compiler.program_seconds(self._uniform())
        reference = self.reference()
        return reference / predicted if reference and predicted else 1.0


def _measurement(seconds: float, noted: Mapping[str, Any], threads: int, clock: float) -> Measurement:
    """Of a program that was timed beside another: its ratio to it, the ratio's standard error, and the rounds."""
    spread = 1.2816 * noted["error"] * noted["rounds"] ** 0.5 / noted["ratio"]
    return Measurement(seconds, seconds * (1 + spread), int(noted["rounds"]), threads, clock)
