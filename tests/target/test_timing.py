"""Timing beside a reference: what a busy machine does to seconds it does not do to ratios."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qcompile import timer as timer_module
from qcompile.compiler import Compiler
from qcompile.target.backend import Measurement
from qcompile.target.turns import confirmed, most_credible
from qcompile.timer import NOISE, Timer
from qcompile.timing import LEAST_ROUNDS, MOST_ROUNDS, Turn, calls_for, time_beside


class Machine:
    """Slows down and recovers for many turns at a time, stalls single turns, and jitters by a percent."""

    def __init__(self, seed: int, busy: float = 2.0, stalls: float = 0.1) -> None:
        self.rng, self.busy, self.stalls = random.Random(seed), busy, stalls
        self.turns, self.state = 0, 1.0

    def turn(self, true: float) -> Turn:
        def timed(calls: int) -> Measurement:
            if self.turns % 10 == 0:
                self.state = self.rng.uniform(1.0, self.busy)
            self.turns += 1
            stalled = self.rng.uniform(1.5, 3.0) if self.rng.random() < self.stalls else 1.0
            seconds = true * self.state * stalled * (1 + 0.01 * self.rng.random())
            return Measurement(seconds, seconds, calls, 1)

        return timed


@pytest.mark.parametrize("seed", range(20))
def test_ratios_are_true_while_seconds_are_not(seed: int) -> None:
    machine = Machine(seed)
    found = time_beside(machine.turn(0.85e-3), machine.turn(1e-3), (3, 3))
    assert found.ratio == pytest.approx(0.85, rel=0.015)
    assert LEAST_ROUNDS <= len(found.ratios) <= MOST_ROUNDS
    # A machine that is busy from beginning to end: seconds are off by what it is, the ratio is not.
    assert found.reference >= 1e-3


def test_a_quiet_machine_needs_few_rounds_and_a_close_limit_more() -> None:
    quiet = Machine(1, busy=1.0, stalls=0.0)
    assert len(time_beside(quiet.turn(1.0), quiet.turn(1.0), (3, 3)).ratios) == LEAST_ROUNDS
    noisy = Machine(1, busy=1.0, stalls=0.1)
    decided = time_beside(noisy.turn(1.0), noisy.turn(1.0), (3, 3), limit=2.0)
    close = time_beside(noisy.turn(1.0), noisy.turn(1.0), (3, 3), limit=1.0001)
    assert len(decided.ratios) < len(close.ratios) == MOST_ROUNDS


def test_turns_alternate_and_take_about_as_long() -> None:
    order: list[str] = []

    def named(name: str) -> Turn:
        def timed(calls: int) -> Measurement:
            order.append(f"{name}{calls}")
            return Measurement(1.0, 1.0, calls, 1)

        return timed

    time_beside(named("own"), named("reference"), (5, 7))
    assert order[:4] == ["reference7", "own5", "own5", "reference7"]
    assert (calls_for(1.0), calls_for(0.01), calls_for(1e-6)) == (3, 6, 2000)


def test_kernels_get_more_turns_until_the_two_quickest_agree() -> None:
    from targets._tvm.profile import MOST_ROUNDS, ROUNDS, quickest_turns

    def turns(*medians: float) -> list[Measurement]:
        return [Measurement(median, median, 1, 1, clock=1e-6) for median in medians]

    steady, disturbed = turns(*[1.0] * 20), turns(4.0, 3.0, 2.0, 1.5, 1.01, 1.0, 0.5)
    hopeless = [Measurement(9.0 / n, 1.0, 1, 1, clock=2e-6) for n in range(1, 20)]
    queues = [list(steady), list(disturbed), list(hopeless)]
    found = quickest_turns([lambda q=q: q.pop(0) for q in queues])  # type: ignore[misc]
    # All at the quickest clock: the third ran at half of it.
    assert [m.median for m in found] == [1.0, 1.0, pytest.approx(9.0 / MOST_ROUNDS / 2)]
    assert [len(before) - len(q) for before, q in zip((steady, disturbed, hopeless), queues, strict=True)] == [
        ROUNDS, 6, MOST_ROUNDS,
    ]  # fmt: skip


def test_a_disturbed_probe_does_not_make_a_program_quick() -> None:
    """Whoever shares the core's units slows the probe down, and what is divided by it seems quick."""
    from targets._tvm.profile import ROUNDS, quickest_turns

    def turn(median: float, clock: float) -> Measurement:
        return Measurement(median, median, 1, 1, clock)

    turns = [turn(1.0, 1.5e-6), turn(1.01, 1.0e-6), turn(1.0, 1.0e-6), turn(1.4, 1.0e-6), turn(1.0, 1.3e-6)]
    assert most_credible(turns, 1e-6, 0.03).median == 1.0
    queue = list(turns)
    assert [m.median for m in quickest_turns([lambda: queue.pop(0)])] == [1.0]
    assert len(queue) == len(turns) - ROUNDS
    # The clock itself: a program takes longer, and so does the probe.
    slower = [turn(1.5, 1.5e-6), turn(1.2, 1.2e-6)]
    assert most_credible(slower, 1e-6, 0.03).median == pytest.approx(1.0)
    assert confirmed(turns[:2], 1e-6, 0.03) is None
    assert most_credible(turns[:1], 1e-6, 0.03).median == pytest.approx(1 / 1.5)
    turns = [turn(1.0, 1.0e-6 * (1.5 if n == 3 else 1.0)) for n in range(2 * MOST_ROUNDS)]
    queue = list(turns)
    assert time_beside(lambda _: queue.pop(0), lambda _: queue.pop(0), (3, 3), clock=1e-6).reference == 1.0


class Costs:
    """A cost cache in memory, all at one clock."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Measurement, dict[str, Any]]] = {}

    def get_many(self, works: list[Any], threads: int, version: str) -> dict[str, Measurement]:
        return {work.key: self.rows[work.key][0] for work in works if work.key in self.rows}

    def conditions(self, work: Any, threads: int, version: str) -> dict[str, Any] | None:
        return self.rows[work.key][1] if work.key in self.rows else None

    def put(self, work: Any, version: str, measured: Measurement, noted: dict[str, Any] | None = None) -> None:
        self.rows[work.key] = (measured, noted or {})

    def clock(self) -> float:
        return 0.0


class Built:
    """A program that takes `true` seconds on a machine."""

    def __init__(self, machine: Machine, true: float) -> None:
        self.turn = machine.turn(true)

    def measure(self, threads: int, runs: int) -> Measurement:
        return self.turn(runs)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    """Of programs that are their own keys; the yardstick "uniform" takes 1 ms."""
    monkeypatch.setattr(timer_module, "work_of_program", lambda program: SimpleNamespace(key=program))
    backend = SimpleNamespace(fingerprint=lambda: "v")
    made = Timer(cast(Compiler, SimpleNamespace(costs=Costs(), backend=backend, threads=1)))
    made._yardstick.append(cast(Any, "uniform"))
    return made


def load(timer: Timer, machine: Machine, **seconds: float) -> None:
    """Let the timer build programs that take so many seconds on a machine."""
    cast(Any, timer)._built = lambda program, folder: Built(machine, seconds[program])


def test_programs_are_kept_as_ratios(timer: Timer) -> None:
    machine = Machine(3)
    load(timer, machine, uniform=1e-3)
    plan = cast(Any, "plan")
    busy = timer.time(plan, cast(Any, Built(machine, 0.8e-3))).median
    standard = timer._standard_seconds()
    assert busy / standard == pytest.approx(0.8, rel=0.02)
    # Found again, and off by less than noise: the same figure, so that the same is decided.
    kept = cast(Costs, timer.compiler.costs).rows["plan"]
    timer.time(plan, cast(Any, Built(machine, 0.81e-3)), limit=0.9e-3)
    assert cast(Costs, timer.compiler.costs).rows["plan"] is kept
    # Another machine state that is more than noise is believed, where a limit has to be kept.
    slower = cast(Any, Built(machine, 0.8e-3 * (1 + 2 * NOISE)))
    assert timer.time(plan, slower).median == kept[1]["ratio"] * timer._standard_seconds()
    changed = timer.time(plan, slower, limit=0.9e-3).median
    assert changed / timer._standard_seconds() == pytest.approx(0.8 * (1 + 2 * NOISE), rel=0.02)


def test_a_yardstick_timed_on_a_busy_machine_is_corrected(timer: Timer) -> None:
    machine = Machine(3, busy=1.0, stalls=0.0)
    load(timer, machine, uniform=1e-3)
    plan = cast(Any, "plan")
    costs = cast(Costs, timer.compiler.costs)
    costs.put(SimpleNamespace(key="uniform"), "v", Measurement(2e-3, 2e-3, 1, 1))
    assert timer._standard_seconds() == 2e-3
    found = timer.time(plan, cast(Any, Built(machine, 0.8e-3))).median
    assert found == pytest.approx(0.8e-3, rel=0.02)
    assert timer._standard_seconds() == pytest.approx(1e-3, rel=0.02)
    # What was timed beside it before follows.
    assert timer.seconds(plan) == pytest.approx(0.8e-3, rel=0.02)
