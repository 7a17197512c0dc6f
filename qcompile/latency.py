"""Plans that keep a latency budget: predicted from kernels, corrected and checked end to end."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcompile.compiler import Budgets, Compiler, Planned
from qcompile.errors import InfeasibleError
from qcompile.pm.facts import COSTS, Bits
from qcompile.target.backend import Executable, Measurement
from qcompile.target.program import Program, work_of_program

log = logging.getLogger("qcompile")

Build = Callable[[Planned, Program, float | None], float | None]
"""From a plan, its program and its predicted seconds (by the cost table) to measured seconds, or None."""

ROUNDS = 5
"""How often the budget is tightened and solved again when the measured latency misses it."""

TURNS, MOST_TURNS = 3, 8
"""Medians taken end to end; more of them only while a budget is missed, because interference only ever adds."""

NOISE = 0.03
"""By how much two measurements of the same program may differ."""

UNIFORM: Bits = (8, 8)


def time_executable(executable: Executable, threads: int, budget: float | None = None) -> Measurement:
    """The quietest of several turns; with a budget in seconds more turns are taken while it is missed."""
    best = executable.measure(threads, 0)
    for turn in range(1, MOST_TURNS):
        if turn >= TURNS and (budget is None or best.median <= budget):
            break
        best = min(best, executable.measure(threads, 0), key=lambda m: m.median)
    return best


@dataclass
class Timer:
    """End-to-end times of programs on this machine, kept in the cost cache.

    Args:
        compiler: whose network and target it is; its calibration is done.
        stage: opened with a name around each build and each measurement.
    """

    compiler: Compiler
    stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    _reference: list[float | None] = field(default_factory=list)

    def seconds(self, program: Program) -> float | None:
        """Of one inference at the clock of the cost cache; measured where it is not known.

        None where nothing can be measured here.
        """
        compiler, costs = self.compiler, self.compiler.costs
        if costs is None:
            return None
        work, version = work_of_program(program), compiler.backend.fingerprint()
        known = costs.get_many([work], compiler.threads, version)
        if not known:
            with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
                with self.stage("build"):
                    compiler.backend.build(program, Path(folder))
                with self.stage("measure"):
                    executable = compiler.backend.load(Path(folder), program.graph)
                    self.put(program, time_executable(executable, compiler.threads))
            known = costs.get_many([work], compiler.threads, version)
        return known[work.key].median

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
        chosen, simple = self.seconds(program), self.seconds(plain)
        return plain if chosen is not None and simple is not None and simple < chosen else program

    def put(self, program: Program, measured: Measurement) -> None:
        """Keep what was measured, unless a program is known: a compilation that is repeated must find the same."""
        costs, work, version = self.compiler.costs, work_of_program(program), self.compiler.backend.fingerprint()
        if costs is not None and not costs.get_many([work], self.compiler.threads, version):
            costs.put(work, version, measured)

    def reference(self) -> float | None:
        """Seconds of the network at uniform 8 bits, which every plan is compared with."""
        if not self._reference:
            known = self.compiler.costs is not None
            self._reference.append(self.seconds(self.settled(self._uniform())) if known else None)
        return self._reference[0]

    def _uniform(self) -> Program:
        compiler = self.compiler
        # The target as it is, not only the bits this compilation was asked to choose from.
        whole = replace(compiler, pins={}, protect=(), weight_bits=None, act_bits=None, rounding="nearest", reports={})
        whole.target, whole.graph = compiler.whole_target, compiler.graph
        whole.uniform(UNIFORM)
        return whole.lower()

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
    nearest, because weights do not change the time; the one that keeps the budget is rounded as asked.

    Returns:
        The plan, its program, and the predicted seconds after correction.

    Raises:
        InfeasibleError: no plan keeps the limits, or none that was measured did.
    """
    compiler, limit = timer.compiler, budgets.latency
    scale, best = timer.correction(), float("inf")
    for _ in range(ROUNDS):
        try:
            plan = compiler.solve(budgets, scale)
        except InfeasibleError as error:
            if best == float("inf"):
                raise
            raise InfeasibleError(
                f"{error.message}; the best plan that was built and measured takes {best * 1e3:.4g} ms",
                hint=error.hint,
            ) from None
        raw = compiler.predicted_seconds(plan.bits)
        measured = None
        if limit is not None and compiler.rounding != "nearest":
            measured = timer.seconds(timer.settled(compiler.lower("nearest")))
        if limit is None or measured is None or measured <= limit:
            program = timer.settled(compiler.lower())
            # The record holds the cost table's sum: the correction comes from measurements, which differ.
            measured = build(plan, program, raw)
            if limit is None or measured is None or measured <= limit or not raw:
                return plan, program, None if raw is None else raw * scale
        if not raw:
            break
        best = min(best, measured)
        log.info("measured %.3g ms, over the budget: correcting the prediction", measured * 1e3)
        # A little more than the ratio, so that noise of a percent or two does not need another round.
        scale = max(scale * 1.02, 1.02 * measured / raw)
    raise InfeasibleError(
        f"latency {limit * 1e3 if limit else 0:.4g} ms: after {ROUNDS} plans the best measured {best * 1e3:.4g} ms",
        hint="raise --latency, or run on a quieter machine",
    )


def slower_than_uniform(measured: float | None, reference: float | None) -> str | None:
    """What to say where a plan takes longer than uniform 8 bits, beyond noise; both in seconds at one clock."""
    if measured is None or reference is None or measured <= reference * (1 + NOISE):
        return None
    return (
        f"SLOWER THAN UNIFORM 8 BITS: {measured * 1e3:.4g} ms, uniform w8a8 takes {reference * 1e3:.4g} ms; fewer bits "
        "only make this artifact smaller"
    )
