"""The integer program: against brute force, against published optima, and at its limits."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from passes.plan import ilp
from passes.plan.ilp import Limit, Plan, Problem, exact, lexicographic, minimise, total

FIXTURE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "hawq_ilp_fixture.json"


def every_plan(problem: Problem) -> list[Plan]:
    layers = list(problem.choices)
    plans = (dict(zip(layers, row, strict=True)) for row in itertools.product(*problem.choices.values()))
    return [plan for plan in plans if problem.allows(plan)]


def random_instance(seed: int) -> tuple[Problem, list[ilp.Table]]:
    """A few layers with uneven menus, ties, and one to three limits; a third has small integer costs."""
    rng = random.Random(seed)
    menu = [(w, a) for w in (2, 4, 8) for a in (4, 8)]
    layers = [f"layer{i}" for i in range(rng.randint(2, 5))]
    choices = {k: tuple(sorted(rng.sample(menu, rng.randint(2, 5)))) for k in layers}
    groups: dict[int, list[str]] = {}
    for layer in layers:
        groups.setdefault(rng.randrange(len(layers)), []).append(layer)
    ties = tuple(map(tuple, groups.values()))

    def table(spread: float) -> ilp.Table:
        def cost() -> float:
            if seed % 3 == 0:
                return float(rng.randint(0, 4))
            return rng.random() * 10 ** (rng.uniform(-spread, spread))

        return exact({k: {b: cost() for b in row} for k, row in choices.items()})

    loss, latency, memory = table(4), table(1), table(1)
    peaks = tuple((table(1), Fraction(rng.randint(0, 2))) for _ in range(2))
    free = Problem(choices, ties)
    plans = every_plan(free)
    limits = [
        Limit("latency", Fraction(0), ((latency, Fraction(1, 3)),)),
        Limit("memory", Fraction(0), ((memory, Fraction(0)),)),
        Limit("activations", Fraction(0), peaks),
    ]
    chosen = rng.sample(limits, rng.randint(1, 3))
    if plans:
        # The bound is the value of some plan, so it is met exactly; a few instances have no plan at all.
        chosen = [replace(limit, bound=limit.value(rng.choice(plans))) for limit in chosen]
    return replace(free, limits=tuple(chosen)), [loss, latency, memory]


@pytest.mark.parametrize("block", range(8))
def test_equals_brute_force(block: int) -> None:
    """1,000 instances."""
    for seed in range(block * 125, block * 125 + 125):
        problem, objectives = random_instance(seed)
        plans = every_plan(problem)
        solution = lexicographic(problem, objectives)
        if not plans:
            assert solution.status == "infeasible"
            continue
        best = min(plans, key=lambda plan: [total(table, plan) for table in objectives])
        assert solution.plan is not None
        assert solution.status == "optimal"
        assert [total(t, solution.plan) for t in objectives] == [total(t, best) for t in objectives], seed
        assert problem.allows(solution.plan)
        assert solution.objective == total(objectives[0], best)
        assert solution.gap <= 1e-6


def test_the_smallest_peak_of_several_rows_equals_brute_force() -> None:
    for seed in range(60):
        problem, _ = random_instance(seed)
        rows = problem.limits[0].rows
        plans = every_plan(problem)
        solution = minimise(problem, rows)
        expected = min((problem.limits[0].value(plan) for plan in plans), default=None)
        found = None if solution.plan is None else problem.limits[0].value(solution.plan)
        assert found == expected


def test_next_best_plans_come_in_order() -> None:
    problem, (loss, *_) = random_instance(4)
    ranked = sorted(total(loss, plan) for plan in every_plan(problem))
    found: list[Plan] = []
    for expected in ranked[:5]:
        solution = minimise(replace(problem, excluded=tuple(found)), loss)
        assert solution.plan is not None
        assert solution.plan not in found
        assert total(loss, solution.plan) == expected
        found.append(solution.plan)


def test_one_absurd_choice_does_not_drown_small_differences() -> None:
    """Differences of 1e-9 beside a choice of 1e12: far below any tolerance if they were given as they are."""
    rng = random.Random(0)
    loss = {f"l{i}": {(2, 8): 1e12, (4, 8): rng.random() * 1e-9, (8, 8): 0.0} for i in range(12)}
    size = {f"l{i}": {(2, 8): 1.0, (4, 8): 2.0, (8, 8): 4.0} for i in range(12)}
    problem = Problem(
        {k: tuple(row) for k, row in loss.items()},
        (),
        (Limit("memory", Fraction(36), ((exact(size), Fraction(0)),)),),
    )
    solution = minimise(problem, exact(loss))
    expected = sum(sorted(ilp.rational(row[4, 8]) for row in loss.values())[:6])
    assert solution.objective == expected


def test_a_gap_is_reported_and_not_called_optimal() -> None:
    problem, loss = hard_instance(40, 5)
    solution = minimise(problem, loss, gap=0.2)
    assert solution.status in ("optimal", "feasible")
    assert solution.gap <= 0.2
    assert (solution.status == "optimal") == (solution.gap <= 1e-9)


def hard_instance(layers: int, rows: int) -> tuple[Problem, ilp.Table]:
    """A market split: several nearly incompatible limits, which branch and bound cannot settle quickly."""
    rng = random.Random(7)
    names = [f"l{i}" for i in range(layers)]
    menu = ((4, 8), (8, 8))
    loss = exact({k: {(4, 8): 1.0 + rng.random(), (8, 8): 0.0} for k in names})
    limits = []
    for row in range(rows):
        size = {k: {(4, 8): 0, (8, 8): rng.randint(1, 1000)} for k in names}
        half = sum(r[8, 8] for r in size.values()) // 2
        limits.append(Limit(f"row{row}", Fraction(half), ((exact(size), Fraction(0)),)))
    return Problem(dict.fromkeys(names, menu), (), tuple(limits)), loss


def test_a_time_limit_gives_a_feasible_plan_with_a_gap() -> None:
    problem, loss = hard_instance(120, 12)
    solution = minimise(problem, loss, seconds=1.0)
    assert solution.status == "feasible"
    assert solution.plan is not None
    assert problem.allows(solution.plan)
    assert 0 < solution.gap < 1
    assert solution.bound < solution.objective
    assert solution.seconds < 5


def test_a_time_limit_without_a_plan_falls_back_on_the_known_one() -> None:
    problem, loss = hard_instance(120, 12)
    start = dict.fromkeys(problem.choices, (4, 8))
    solution = minimise(problem, loss, seconds=0.0, start=start)
    assert solution.status == "feasible"
    assert solution.plan is not None
    assert solution.objective <= total(loss, start)


def test_the_same_problem_gives_the_same_plan() -> None:
    problem, loss = hard_instance(30, 2)
    assert minimise(problem, loss).plan == minimise(problem, loss).plan


def hawq_cases() -> list[tuple[str, str]]:
    nets = ("resnet18", "resnet50")
    kinds = ("modelsize", "bops", "latency")
    return [(net, f"{kind}_{share}") for net in nets for kind in kinds for share in ("0.75", "0.5", "0.25")]


@pytest.mark.parametrize(("net", "case"), hawq_cases())
def test_published_hawqv3_optima_are_reached(net: str, case: str) -> None:
    if not FIXTURE.exists():
        pytest.skip("the published HAWQV3 inputs are not part of the repository")
    data = json.loads(FIXTURE.read_text(encoding="utf-8"))["nets"][net]
    published = data["solutions"][case]
    loss, cost = hawq_tables(data, case.split("_")[0])
    problem = Problem(
        dict.fromkeys(loss, ((4, 4), (8, 8))),
        tuple(tuple(f"l{i}" for i in tie) for tie in data["ties"]),
        (Limit("limit", ilp.rational(published["limit"]), ((cost, Fraction(0)),)),),
    )
    solution = lexicographic(problem, [loss, cost])
    assert solution.status == "optimal"
    assert solution.plan is not None
    # The notebook counts the loss of 4 bits as 0 and that of 8 bits as the (negative) difference.
    theirs = {f"l{i}": (int(bits), int(bits)) for i, bits in enumerate(published["bits"])}
    assert solution.objective <= total(loss, theirs)
    assert float(total(cost, solution.plan)) <= published["limit"] * (1 + 1e-12)
    assert float(solution.objective) == pytest.approx(published["objective"], rel=1e-9)


def hawq_tables(data: dict[str, Any], kind: str) -> tuple[ilp.Table, ilp.Table]:
    """Trace · ‖ΔW‖² as the loss, and the cost the case limits."""
    loss, cost = {}, {}
    for i, trace in enumerate(data["avg_trace"]):
        small, large = {
            "modelsize": (data["params"][i] * 0.5, data["params"][i]),
            "bops": (data["macs_millions"][i] / 64, data["macs_millions"][i] / 16),
            "latency": (data["lat_int4"][i], data["lat_int8"][i]),
        }[kind]
        loss[f"l{i}"] = {(4, 4): trace * data["dw2_int4"][i], (8, 8): trace * data["dw2_int8"][i]}
        cost[f"l{i}"] = {(4, 4): small, (8, 8): large}
    return exact(loss), exact(cost)


def test_solving_prints_nothing() -> None:
    """Not even from C: standard output belongs to `--json`."""
    solve = (
        "from fractions import Fraction\n"
        "from passes.plan.ilp import Problem, minimise\n"
        "menu = ((4, 8), (8, 8))\n"
        "costs = {'a': dict(zip(menu, (Fraction(1), Fraction(2))))}\n"
        "assert minimise(Problem({'a': menu}), costs).plan == {'a': (4, 8)}\n"
    )
    done = subprocess.run([sys.executable, "-c", solve], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
