"""Keeping a latency budget: correction, tightening, drafts, and what is said about slow plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qcompile.compiler import Budgets, Compiler, Planned
from qcompile.errors import InfeasibleError
from qcompile.latency import HEADROOM, ROUNDS, keep_latency, slower_than_uniform
from qcompile.target.backend import Measurement
from qcompile.target.cost import CostCache
from qcompile.target.program import ProgramWork
from qcompile.timer import NOISE, Timer
from qcompile.timing import MOST_ALONE, MOST_TURNS, TURNS, time_executable, time_steady

PLANS = {8: 1.0, 7: 0.95, 6: 0.9, 4: 0.5}
"""Bits → predicted seconds; more bits are better."""


@dataclass
class FakeCompiler:
    """Solves for the most bits that are predicted to fit; a program is its plan."""

    rounding: str = "gptq"
    bits: int = 8
    costs: object = True
    scales: list[float] = field(default_factory=list)
    lowered: list[str | None] = field(default_factory=list)

    def solve(self, budgets: Budgets, scale: float) -> Planned:
        self.scales.append(scale)
        fitting = [b for b, s in PLANS.items() if budgets.latency is None or s * scale <= budgets.latency]
        if not fitting:
            error = InfeasibleError(f"latency {budgets.latency}: nothing fits")
            error.least = {"latency": min(PLANS.values()) * scale}
            raise error
        self.bits = max(fitting)
        return Planned({"layer": (self.bits, self.bits)})

    def replan(self, bits: dict[str, tuple[int, int]]) -> None:
        self.bits = bits["layer"][0]

    def lower(self, rounding: str | None = None) -> Any:
        self.lowered.append(rounding)
        return self.bits

    def predicted_seconds(self, bits: dict[str, tuple[int, int]]) -> float:
        return PLANS[bits["layer"][0]]


class FakeTimer(Timer):
    """End-to-end seconds are `slowness` times the prediction, for each bit width or for all."""

    def __init__(self, slowness: float | dict[int, float], correction: float = 1.0, rounding: str = "gptq") -> None:
        super().__init__(cast(Compiler, FakeCompiler(rounding)))
        self.slowness, self.corrected, self.drafts = slowness, correction, 0

    def true(self, bits: int) -> float:
        factor = self.slowness[bits] if isinstance(self.slowness, dict) else self.slowness
        return PLANS[bits] * factor

    def seconds(self, program: Any, limit: float | None = None) -> float | None:
        self.drafts += 1
        return self.true(program)

    def settled(self, program: Any) -> Any:
        return program

    def reference(self) -> float | None:
        return self.true(8)

    def correction(self) -> float:
        return self.corrected

    def look_at_clock(self) -> None:
        """The pace stays."""


def kept(timer: FakeTimer, latency: float | None) -> tuple[Planned, float | None, list[int]]:
    built: list[int] = []

    def build(planned: Planned, program: Any, predicted: float | None) -> float:
        assert predicted == PLANS[program]
        built.append(program)
        return timer.true(program)

    planned, _, predicted = keep_latency(timer, Budgets(latency=latency), build)
    return planned, predicted, built


def fake(timer: FakeTimer) -> FakeCompiler:
    return cast(FakeCompiler, timer.compiler)


def test_without_a_budget_the_first_plan_is_built() -> None:
    timer = FakeTimer(2.0)
    planned, predicted, built = kept(timer, None)
    assert (planned.bits["layer"], predicted, built, timer.drafts) == ((8, 8), 1.0, [8], 0)


def test_without_a_budget_a_plan_does_not_depend_on_what_was_measured_end_to_end() -> None:
    timer = FakeTimer(2.0, correction=1.3)
    _, predicted, _ = kept(timer, None)
    assert (fake(timer).scales, predicted) == ([1.0], 1.3)


def test_a_missed_budget_is_tightened_before_weights_are_rounded() -> None:
    timer = FakeTimer(1.05)
    planned, predicted, built = kept(timer, 1.0)
    # Eight bits were predicted to fit and did not; six do, at the corrected prediction.
    assert planned.bits["layer"] == (6, 6)
    assert built == [6]
    assert fake(timer).lowered == ["nearest", "nearest", None]
    assert predicted == pytest.approx(0.9 * 1.05 * HEADROOM)


def test_the_correction_spares_a_build() -> None:
    timer = FakeTimer(1.05, correction=1.05)
    planned, _, built = kept(timer, 1.0)
    assert (planned.bits["layer"], built, timer.drafts) == ((7, 7), [7], 1)


def test_a_budget_is_kept_at_a_slower_clock() -> None:
    timer = FakeTimer(1.0)
    timer.pace = 1.08
    planned, predicted, built = kept(timer, 1.0)
    # Seven bits take 0.95 s at the clock of the costs and 1.026 s now; six take 0.9 and 0.972.
    assert (planned.bits["layer"], built) == ((6, 6), [6])
    assert predicted == pytest.approx(0.9 * 1.08)
    with pytest.raises(InfeasibleError, match=r"takes 540 ms, measured; uniform w8a8 takes 1080 ms"):
        kept(timer, 0.53)


@pytest.mark.parametrize(("known", "now", "pace"), [(2e-6, 3e-6, 1.5), (2e-6, 1e-6, 1.0), (0.0, 1e-6, 1.0)])
def test_the_pace_is_that_of_the_slower_clock(
    known: float, now: float, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = FakeCompiler(costs=SimpleNamespace(clock=lambda: known))
    timer = Timer(cast(Compiler, compiler))
    monkeypatch.setattr("qcompile.timer.probe_long", lambda: now)
    timer.look_at_clock()
    assert timer.pace == pytest.approx(pace)


def test_weights_rounded_to_nearest_need_no_draft() -> None:
    timer = FakeTimer(1.0, rounding="nearest")
    assert kept(timer, 1.0)[2] == [8]
    assert timer.drafts == 0


def test_an_unused_budget_buys_precision() -> None:
    # Only four bits are predicted to fit; they are so fast that six are tried, which keep the budget as well.
    timer = FakeTimer(0.9, correction=1.15)
    planned, _, built = kept(timer, 0.86)
    assert (planned.bits["layer"], built, timer.drafts) == ((6, 6), [6], 2)


def test_a_more_precise_plan_that_misses_yields_to_the_one_before() -> None:
    timer = FakeTimer({8: 1.2, 7: 1.2, 6: 0.8, 4: 1.0}, correction=1.1)
    planned, _, built = kept(timer, 1.0)
    assert (planned.bits["layer"], built) == ((6, 6), [6])
    # The compiler plans with it again before it is built.
    assert fake(timer).bits == 6


def test_a_plan_predicted_to_be_too_slow_is_measured_before_that_is_believed() -> None:
    timer = FakeTimer({8: 1.0, 7: 1.0, 6: 1.0, 4: 0.7}, correction=1.1)
    planned, _, built = kept(timer, 0.5)
    assert (planned.bits["layer"], built) == ((4, 4), [4])


def test_what_another_yardstick_measured_says_nothing() -> None:
    """The first draft finds that all was timed on a busy machine: eight bits keep the budget after all."""

    class Moving(FakeTimer):
        def seconds(self, program: Any, limit: float | None = None) -> float | None:
            if not self.moved:
                self.moved, self.corrected = 1, 1.0
                return 2.0
            return super().seconds(program, limit)

    timer = Moving(1.0, correction=2.0)
    planned, _, built = kept(timer, 1.0)
    assert (planned.bits["layer"], built) == ((8, 8), [8])


def test_what_was_measured_is_named_where_nothing_fits() -> None:
    timer = FakeTimer(2.0)
    with pytest.raises(InfeasibleError) as caught:
        kept(timer, 0.95)
    assert caught.value.exit_code == 4
    said = "latency 950 ms: the fastest plan there is takes 1000 ms, measured; uniform w8a8 takes 2000 ms"
    assert caught.value.message == said
    assert "--latency 1020ms can be kept" in str(caught.value.hint)
    assert fake(timer).bits == 4


def test_other_limits_that_nothing_keeps_are_said_as_they_are() -> None:
    timer = FakeTimer(1.0)

    def refuse(budgets: Budgets, scale: float) -> Planned:
        raise InfeasibleError("memory 1 B: the smallest plan takes 2 B")

    fake(timer).solve = refuse  # type: ignore[method-assign]
    with pytest.raises(InfeasibleError, match="the smallest plan takes 2 B"):
        kept(timer, 0.95)


def test_the_number_of_plans_is_bounded() -> None:
    timer = FakeTimer(1.0)
    compiler = fake(timer)
    compiler.solve = lambda budgets, scale: compiler.scales.append(scale) or Planned({"layer": (8, 8)})  # type: ignore
    with pytest.raises(InfeasibleError, match=f"the best of {ROUNDS} plans that were built takes 1000 ms"):
        kept(timer, 0.9)
    # Tightened every time, never back.
    assert compiler.scales == sorted(compiler.scales)
    assert len(set(compiler.scales)) == ROUNDS


class FakeExecutable:
    """Gives the listed medians in turn."""

    def __init__(self, *medians: float) -> None:
        self.medians = list(medians)

    def measure(self, threads: int, runs: int) -> Measurement:
        return Measurement(self.medians.pop(0), 1.0, 1, threads)


def test_the_quietest_turn_counts_and_a_missed_budget_gets_more() -> None:
    quiet = FakeExecutable(3.0, 1.0, 2.0, 0.1)
    assert time_executable(cast(Any, quiet), 1).median == 1.0
    assert len(quiet.medians) == 4 - TURNS
    noisy = FakeExecutable(3.0, 3.0, 3.0, 1.5, 0.9, 0.1)
    assert time_executable(cast(Any, noisy), 1, budget=1.0).median == 0.9
    hopeless = FakeExecutable(*[3.0] * (MOST_TURNS + 1))
    assert time_executable(cast(Any, hopeless), 1, budget=1.0).median == 3.0
    assert len(hopeless.medians) == 1


def test_the_yardstick_is_timed_until_its_two_quietest_turns_agree() -> None:
    noisy = FakeExecutable(3.0, 2.0, 1.2, 1.0, 5.0, 1.01, 0.1)
    assert time_steady(cast(Any, noisy), 1).median == 1.0
    assert noisy.medians == [0.1]
    hopeless = FakeExecutable(*[2.0**-n for n in range(MOST_ALONE + 1)])
    assert time_steady(cast(Any, hopeless), 1).median == 2.0 ** (1 - MOST_ALONE)


def test_a_plan_slower_than_uniform_is_named() -> None:
    assert slower_than_uniform(None, 1.0) is None
    assert slower_than_uniform(1.0, None) is None
    assert slower_than_uniform(1e-3, 1e-3) is None
    said = slower_than_uniform(1e-3 * (1 + 2 * NOISE), 1e-3)
    assert said is not None
    assert "SLOWER THAN UNIFORM 8 BITS: 1.06 ms, uniform w8a8 takes 1 ms" in said


def test_measurements_are_compared_at_one_clock() -> None:
    slow = Measurement(2.0, 3.0, 10, 1, clock=4e-6)
    assert slow.at(2e-6) == Measurement(1.0, 1.5, 10, 1, clock=2e-6)
    unknown = Measurement(2.0, 3.0, 10, 1)
    assert unknown.at(2e-6) == unknown
    assert slow.at(0.0) == slow


@dataclass(frozen=True)
class FakeKernel:
    name: str
    variant: str = ""


@dataclass(frozen=True)
class FakeProgram:
    kernels: tuple[FakeKernel, ...]


class FakeBackend:
    def variants(self, kernel: FakeKernel, program: FakeProgram) -> tuple[str, ...]:
        return ("plain", "winograd")

    def fingerprint(self) -> str:
        return "fake"


@dataclass
class Measured(Timer):
    """Knows what the two variants take."""

    times: dict[str, float] = field(default_factory=dict)

    def seconds(self, program: Any, limit: float | None = None) -> float:
        return self.times[program.kernels[0].variant]


PROGRAM = cast(Any, FakeProgram((FakeKernel("conv", "winograd"),)))


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    monkeypatch.setattr("qcompile.timer.work_of_program", lambda p: ProgramWork((p.kernels[0].variant,)))
    compiler = SimpleNamespace(costs=CostCache(tmp_path, "here"), backend=FakeBackend(), threads=1)
    return Measured(cast(Compiler, compiler))


@pytest.mark.parametrize(("chosen", "plain", "expected"), [(1.0, 0.8, "plain"), (0.8, 1.0, "winograd")])
def test_the_faster_program_end_to_end_is_taken(measured: Measured, chosen: float, plain: float, expected: str) -> None:
    measured.times = {"winograd": chosen, "plain": plain}
    assert measured.settled(PROGRAM).kernels[0].variant == expected
    # Found once, it stays: programs that take about the same must not change places from one compilation to the next.
    measured.times = {"winograd": plain, "plain": chosen}
    assert measured.settled(PROGRAM).kernels[0].variant == expected


def test_without_a_cost_cache_the_program_stays(measured: Measured) -> None:
    measured.compiler.costs = None
    assert measured.settled(PROGRAM) is PROGRAM
