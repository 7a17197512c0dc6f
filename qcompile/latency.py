"""Plans that keep a latency budget: predicted from kernels, corrected and checked end to end."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcompile.compiler import Budgets, Compiler, Planned
from qcompile.errors import InfeasibleError
from qcompile.pm.facts import COSTS, Bits
from qcompile.target.backend import Executable, Measurement
from qcompile.target.clock import probe
from qcompile.target.program import Program, ProgramWork, work_of_program
from qcompile.timing import calls_for, time_beside, time_executable, time_steady, turn_of

log = logging.getLogger("qcompile")

Build = Callable[[Planned, Program, float | None], float | None]
"""From a plan, its program and its predicted seconds (by the cost table) to measured seconds, or None."""

ROUNDS = 6
"""How many plans are built and measured for one budget."""

HEADROOM = 1.02
"""How much more than measured a correction says, so that a percent of noise does not need another plan."""

SLACK = 0.06
"""Share of a budget that a plan may leave unused before a more precise one is tried, `RELAXED` times at most."""

RELAXED = 2

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
            self.pace = max(1.0, probe() / known)

    def time(self, program: Program, executable: Executable, limit: float | None = None) -> Measurement:
        """Time a built program and keep the result; what is known already stands unless it is off by `NOISE`.

        A compilation that is repeated so finds the same.
        """
        compiler, costs = self.compiler, self.compiler.costs
        work, threads, standard = work_of_program(program), compiler.threads, self._standard_seconds()
        if costs is None or work.key == work_of_program(self._yard()).key:
            with self.stage("measure"):
                alone = time_executable(executable, threads, limit)
            return alone if costs is None else replace(alone, median=self._quieter(alone.at(costs.clock()).median))
        with self.stage("measure"):
            first = executable.measure(threads, 3)
            found = time_beside(
                turn_of(executable, threads), turn_of(self._standard_executable(), threads),
                (calls_for(first.median), calls_for(standard)), None if limit is None else limit / standard,
                costs.clock(),
            )  # fmt: skip
        seconds = found.ratio * self._quieter(found.reference)
        known = self._known(work)
        if known is None or abs(seconds / known - 1) > NOISE:
            noted = {"ratio": found.ratio, "error": found.error, "rounds": len(found.ratios), "quietest": found.own}
            seen = Measurement(seconds, seconds, len(found.ratios), threads)
            costs.put(work, compiler.backend.fingerprint(), seen, noted)
            known = seconds
        p90 = known * (1 + 1.2816 * found.error * len(found.ratios) ** 0.5 / found.ratio)
        return Measurement(known, p90, len(found.ratios), threads, first.clock)

    def _known(self, work: ProgramWork) -> float | None:
        """Seconds kept of a program: as a ratio to the yardstick where it was timed beside it."""
        costs, threads, version = self.compiler.costs, self.compiler.threads, self.compiler.backend.fingerprint()
        if costs is None:
            return None
        noted = costs.conditions(work, threads, version)
        if noted is not None and "ratio" in noted:
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

        if self.compiler.costs is None:
            return program
        plain = preferred(program, self.compiler.backend)
        if plain.kernels == program.kernels:
            return program
        return plain if self._quicker(plain, program) else program

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


def keep_latency(timer: Timer, budgets: Budgets, build: Build) -> tuple[Planned, Program, float | None]:
    """Solve, build and measure; while the measured latency misses the budget, correct the prediction and repeat.

    Prediction begins corrected by what uniform 8 bits take end to end.  Plans are tried with weights rounded to
    nearest, because weights do not change the time; the one that keeps the budget is rounded as asked.  A plan that
    leaves more than `SLACK` of the budget unused gives way to a more precise one where that keeps the budget as well.
    Where no plan is predicted to keep it, the fastest one is measured before that is believed.  All seconds here are
    those of a stopwatch at the pace of this moment.

    Returns:
        The plan, its program, and the predicted seconds after correction.

    Raises:
        InfeasibleError: no plan keeps the limits, or none that was measured did.
    """
    return _Search(timer, budgets, build).run()


@dataclass
class _Search:
    """The loop of `keep_latency`.

    Attributes:
        scale: corrected over predicted seconds.
        best: the smallest measured seconds of a plan that missed the budget.
        kept: a plan that keeps it, while a more precise one is tried.
        relaxed: how many more precise ones were tried.
        fastest: whether the fastest plan was tried.
        moved: `Timer.moved` when all this was found.
    """

    timer: Timer
    budgets: Budgets
    build: Build
    scale: float = 1.0
    best: float = float("inf")
    kept: Planned | None = None
    relaxed: int = 0
    fastest: bool = False
    moved: int = 0

    def run(self) -> tuple[Planned, Program, float | None]:
        limit = self.budgets.latency
        self._begin()
        for _ in range(ROUNDS):
            if self.timer.moved != self.moved:
                self._begin()
            plan = self._next()
            raw = self.timer.compiler.predicted_seconds(plan.bits)
            measured = self._draft(plan)
            if limit is not None and measured is not None and raw and self._roomy(measured):
                self.kept, self.scale = plan, HEADROOM * measured / raw
                self.relaxed += 1
                continue
            if limit is None or measured is None or measured <= limit:
                done, measured = self._finish(plan, raw)
                if done is not None:
                    return done
                self.kept = None
            if not raw or measured is None:
                break
            self._missed(measured, raw)
        if self.kept is not None:
            done, measured = self._finish(self._again(), self.timer.compiler.predicted_seconds(self.kept.bits))
            if done is not None:
                return done
        raise self._unreachable()

    def _begin(self) -> None:
        """Start from what uniform 8 bits take; what was measured by another yardstick says nothing."""
        if self.budgets.latency is not None:
            self.timer.look_at_clock()
        self.scale = self.timer.correction() * self.timer.pace
        self.moved = self.timer.moved
        self.best, self.kept, self.relaxed, self.fastest = float("inf"), None, 0, False

    def _next(self) -> Planned:
        """The plan to try: solved under the corrected prediction, or what was kept, or the fastest there is."""
        compiler, limit = self.timer.compiler, self.budgets.latency
        if self.kept is not None and self.best < float("inf"):
            return self._again()
        try:
            with self.timer.stage("solve"):
                # Without a limit the correction decides nothing, and a plan does not tell how busy the machine was.
                return compiler.solve(self.budgets, 1.0 if limit is None else self.scale)
        except InfeasibleError as error:
            if self.kept is not None:
                return self._again()
            if self.fastest:
                raise self._unreachable() from None
            least = error.least.get("latency")
            if least is None or limit is None or compiler.costs is None:
                raise
            self.fastest = True
            log.info("no plan is predicted to keep the budget: the fastest one is measured")
            with self.timer.stage("solve"):
                return compiler.solve(replace(self.budgets, latency=least * (1 + 1e-6)), self.scale)

    def _again(self) -> Planned:
        """The plan that was kept; the compiler plans with it again."""
        assert self.kept is not None  # asked by the callers
        self.timer.compiler.replan(self.kept.bits)
        return self.kept

    def _draft(self, plan: Planned) -> float | None:
        """Measured seconds of a plan with weights rounded to nearest; None where nobody needs to know them."""
        compiler, limit = self.timer.compiler, self.budgets.latency
        if limit is None or compiler.rounding == "nearest" or (self.kept is not None and plan.bits == self.kept.bits):
            return None
        with self.timer.stage("round"):
            program = compiler.lower("nearest")
        measured = self.timer.seconds(self.timer.settled(program), limit / self.timer.pace)
        return None if measured is None else measured * self.timer.pace

    def _roomy(self, measured: float) -> bool:
        """Whether a more precise plan is worth a try: much is left, and no plan has missed the budget."""
        limit = self.budgets.latency or 0.0
        return measured < limit * (1 - SLACK) and self.relaxed < RELAXED and self.best == float("inf")

    def _finish(
        self, plan: Planned, raw: float | None
    ) -> tuple[tuple[Planned, Program, float | None] | None, float | None]:
        """Round, build and measure: the result where the budget is kept, else None; and the measured seconds."""
        limit = self.budgets.latency
        with self.timer.stage("round"):
            program = self.timer.compiler.lower()
        program = self.timer.settled(program)
        # The record holds the cost table's sum: the correction comes from measurements, which differ.
        measured = self.build(plan, program, raw)
        measured = None if measured is None else measured * self.timer.pace
        if limit is None or measured is None or measured <= limit or not raw:
            return (plan, program, None if raw is None else raw * self.scale), measured
        return None, measured

    def _missed(self, measured: float, raw: float) -> None:
        self.best = min(self.best, measured)
        log.info("measured %.4g ms, over the budget: correcting the prediction", measured * 1e3)
        # Never back to where a plan missed.
        self.scale = max(self.scale * HEADROOM, HEADROOM * measured / raw)

    def _unreachable(self) -> InfeasibleError:
        """What was measured, and what to do."""
        limit, reference = self.budgets.latency or 0.0, self.timer.reference()
        what = "the fastest plan there is" if self.fastest else f"the best of {ROUNDS} plans that were built"
        beside = "" if reference is None else f"; uniform w8a8 takes {reference * self.timer.pace * 1e3:.4g} ms"
        return InfeasibleError(
            f"latency {limit * 1e3:.4g} ms: {what} takes {self.best * 1e3:.4g} ms, measured{beside}",
            hint=f"--latency {self.best * HEADROOM * 1e3:.4g}ms can be kept; allow smaller bit widths, pin fewer "
            "layers, or use more --threads for less",
        )


def missed_by_stopwatch(now: float, measured: float, limit: float | None) -> str | None:
    """What to say where a stopwatch shows more than the budget, in seconds; `measured` is what was judged."""
    if limit is None or now <= limit:
        return None
    return (
        f"an inference takes {now * 1e3:.4g} ms at this moment, more than the {limit * 1e3:.4g} ms asked for; timed in "
        f"turns with uniform 8 bits it takes {measured * 1e3:.4g} ms: the machine is busier or slower now"
    )


def slower_than_uniform(measured: float | None, reference: float | None) -> str | None:
    """What to say where a plan takes longer than uniform 8 bits, beyond noise; both in seconds at one clock."""
    if measured is None or reference is None or measured <= reference * (1 + NOISE):
        return None
    return (
        f"SLOWER THAN UNIFORM 8 BITS: {measured * 1e3:.4g} ms, uniform w8a8 takes {reference * 1e3:.4g} ms; fewer bits "
        "only make this artifact smaller"
    )
