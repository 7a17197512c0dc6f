"""Plans that keep a latency budget: predicted from kernels, corrected and checked end to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from qcompile.compiler import Budgets, Planned
from qcompile.errors import InfeasibleError
from qcompile.target.program import Program
from qcompile.timer import NOISE, Timer

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
