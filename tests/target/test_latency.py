"""Keeping a latency budget: correction, tightening, drafts, and what is said about slow plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qcompile.compiler import Budgets, Compiler, Planned
from qcompile.errors import InfeasibleError
from qcompile.latency import MOST_TURNS, NOISE, ROUNDS, TURNS, Timer, keep_latency, slower_than_uniform, time_executable
from qcompile.target.backend import Measurement

PLANS = {8: 1.0, 6: 0.9, 4: 0.5}
"""Bits → predicted seconds; more bits are better."""


@dataclass
class FakeCompiler:
    """Solves for the most bits that are predicted to fit; a program is its plan."""

    rounding: str = "gptq"
    bits: int = 8
    scales: list[float] = field(default_factory=list)
    lowered: list[str | None] = field(default_factory=list)

    def solve(self, budgets: Budgets, scale: float) -> Planned:
        self.scales.append(scale)
        fitting = [b for b, s in PLANS.items() if budgets.latency is None or s * scale <= budgets.latency]
        if not fitting:
            raise InfeasibleError(f"latency {budgets.latency}: nothing fits")
        self.bits = max(fitting)
        return Planned({"layer": (self.bits, self.bits)})

    def lower(self, rounding: str | None = None) -> Any:
        self.lowered.append(rounding)
        return self.bits

    def predicted_seconds(self, bits: dict[str, tuple[int, int]]) -> float:
        return PLANS[bits["layer"][0]]


class FakeTimer(Timer):
    """End-to-end seconds are `slowness` times the prediction."""

    def __init__(self, slowness: float, correction: float = 1.0, rounding: str = "gptq") -> None:
        super().__init__(cast(Compiler, FakeCompiler(rounding)))
        self.slowness, self.corrected, self.drafts = slowness, correction, 0

    def seconds(self, program: Any) -> float | None:
        self.drafts += 1
        return PLANS[program] * self.slowness

    def settled(self, program: Any) -> Any:
        return program

    def correction(self) -> float:
        return self.corrected


def kept(timer: FakeTimer, latency: float | None) -> tuple[Planned, float | None, list[int]]:
    built: list[int] = []

    def build(planned: Planned, program: Any, predicted: float | None) -> float:
        assert predicted == PLANS[program]
        built.append(program)
        return PLANS[program] * timer.slowness

    planned, _, predicted = keep_latency(timer, Budgets(latency=latency), build)
    return planned, predicted, built


def fake(timer: FakeTimer) -> FakeCompiler:
    return cast(FakeCompiler, timer.compiler)


def test_without_a_budget_the_first_plan_is_built() -> None:
    timer = FakeTimer(2.0)
    planned, predicted, built = kept(timer, None)
    assert (planned.bits["layer"], predicted, built, timer.drafts) == ((8, 8), 1.0, [8], 0)


def test_a_missed_budget_is_tightened_before_weights_are_rounded() -> None:
    timer = FakeTimer(1.05)
    planned, predicted, built = kept(timer, 1.0)
    # Eight bits were predicted to fit and did not; six do, at the corrected prediction.
    assert planned.bits["layer"] == (6, 6)
    assert built == [6]
    assert fake(timer).lowered == ["nearest", "nearest", None]
    assert predicted == pytest.approx(0.9 * 1.05 * 1.02)


def test_the_correction_spares_a_build() -> None:
    timer = FakeTimer(1.05, correction=1.05)
    planned, _, built = kept(timer, 1.0)
    assert (planned.bits["layer"], built, timer.drafts) == ((6, 6), [6], 1)


def test_weights_rounded_to_nearest_need_no_draft() -> None:
    timer = FakeTimer(1.0, rounding="nearest")
    assert kept(timer, 1.0)[2] == [8]
    assert timer.drafts == 0


def test_what_was_measured_is_named_where_nothing_fits() -> None:
    with pytest.raises(InfeasibleError, match="the best plan that was built and measured takes 1800 ms"):
        kept(FakeTimer(2.0), 0.95)


def test_the_number_of_plans_is_bounded() -> None:
    timer = FakeTimer(1.0)
    compiler = fake(timer)
    compiler.solve = lambda budgets, scale: compiler.scales.append(scale) or Planned({"layer": (8, 8)})  # type: ignore
    with pytest.raises(InfeasibleError, match=f"after {ROUNDS} plans the best measured"):
        kept(timer, 0.9)
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


@pytest.mark.parametrize(("chosen", "plain", "expected"), [(1.0, 0.8, "plain"), (0.8, 1.0, "winograd")])
def test_the_faster_program_end_to_end_is_taken(chosen: float, plain: float, expected: str) -> None:
    @dataclass
    class Measured(Timer):
        def seconds(self, program: Any) -> float | None:
            return chosen if program.kernels[0].variant == "winograd" else plain

    timer = Measured(cast(Compiler, SimpleNamespace(costs=object(), backend=FakeBackend())))
    program = FakeProgram((FakeKernel("conv", "winograd"),))
    assert timer.settled(cast(Any, program)).kernels[0].variant == expected
    without = Measured(cast(Compiler, SimpleNamespace(costs=None, backend=FakeBackend())))
    assert without.settled(cast(Any, program)) is program
