"""The quadratic program: against brute force and dynamic programming, planted optima, and what it says of its bound."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from passes.plan import quadratic
from passes.plan.bound import lower_bound
from passes.plan.ilp import Limit, Plan, Problem, Table, exact, lexicographic, minimise, total
from passes.plan.pairwise import Pairs, Rows, loss_of, own_folded
from passes.plan.quadratic import minimise_quadratic
from passes.plan.search import Search

PATIENT = 3600.0
"""Seconds to prove an optimum in: a busy machine is slow, not wrong."""

MENU = [(w, a) for w in (2, 4, 8) for a in (4, 8)]


def thousand(size: int, quick: int) -> list[Any]:
    """Seeds 0 to 999 in blocks of a size; those behind the first `quick` blocks run with the slow tests."""
    blocks = [range(start, min(start + size, 1000)) for start in range(0, 1000, size)]
    names = [f"{seeds.start}-{seeds.stop - 1}" for seeds in blocks]
    return [
        pytest.param(seeds, id=name, marks=[] if i < quick else [pytest.mark.slow])
        for i, (seeds, name) in enumerate(zip(blocks, names, strict=True))
    ]


def every_plan(problem: Problem) -> list[Plan]:
    layers = list(problem.choices)
    plans = (dict(zip(layers, row, strict=True)) for row in itertools.product(*problem.choices.values()))
    return [plan for plan in plans if problem.allows(plan)]


def ties_of(grids: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = {}
    for layer, grid in grids.items():
        groups.setdefault(grid, []).append(layer)
    return tuple(map(tuple, groups.values()))


def random_pairs(problem: Problem, grids: dict[str, str], seed: int, strength: float) -> Pairs:
    """Terms of either sign; every other instance has those of a Gram matrix."""
    rows = Rows.of(problem, grids)
    rng = np.random.default_rng(seed)
    count = len(rows.rows)
    gram = rng.normal(size=(4, count))
    other = rng.normal(size=(count, count))
    matrix = strength * (gram.T @ gram / 4 if seed % 2 else other + other.T)
    matrix[rows.owner[:, None] == rows.owner[None, :]] = 0.0
    return Pairs(rows.rows, matrix, grids)


def random_instance(seed: int) -> tuple[Problem, Table, Pairs, list[Table]]:
    """Two to four layers with uneven menus, ties, one or two limits, weak to overwhelming interactions."""
    rng = random.Random(seed)
    layers = [f"layer{i}" for i in range(rng.randint(2, 4))]
    choices = {k: tuple(sorted(rng.sample(MENU, rng.randint(2, 4)))) for k in layers}
    grids = {k: f"g{rng.randrange(len(layers))}" for k in layers}
    free = Problem(choices, ties_of(grids))
    tables = [exact({k: {b: rng.random() for b in row} for k, row in choices.items()}) for _ in range(3)]
    loss, latency, memory = tables
    limits = [
        Limit("latency", Fraction(0), ((latency, Fraction(1, 3)),)),
        Limit("memory", Fraction(0), ((memory, Fraction(0)),)),
    ]
    if plans := every_plan(free):
        limits = [replace(limit, bound=limit.value(rng.choice(plans))) for limit in limits]
    pairs = random_pairs(free, grids, seed, rng.choice([0.02, 0.3, 1.0]))
    return replace(free, limits=tuple(rng.sample(limits, rng.randint(1, 2)))), loss, pairs, [latency, memory]


@pytest.mark.parametrize("seeds", thousand(50, quick=5))
def test_equals_brute_force(seeds: range) -> None:
    for seed in seeds:
        problem, loss, pairs, costs = random_instance(seed)
        plans = every_plan(problem)
        found = minimise_quadratic(problem, loss, pairs, tie_break=costs, seconds=PATIENT).solution
        if not plans:
            assert found.status == "infeasible"
            continue
        best = min(loss_of(loss, pairs, plan) for plan in plans)
        assert found.plan is not None
        assert problem.allows(found.plan)
        assert found.objective == loss_of(loss, pairs, found.plan)
        assert float(found.objective - best) <= 1e-9, seed
        assert found.status == "optimal"
        assert found.bound <= float(best) + 1e-9


def chain(
    seed: int, layers: int, pairwise: bool
) -> tuple[Problem, Table, Pairs, dict[str, dict[tuple[int, int], int]]]:
    """Layers in a row, each interacting with the next one's weights; integer sizes under one limit."""
    rng = random.Random(seed)
    names = [f"l{i}" for i in range(layers)]
    choices: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(names, ((2, 8), (4, 8), (8, 8)))
    grids = {k: f"g{i}" for i, k in enumerate(names)}
    size = {k: dict(zip(choices[k], sorted(rng.sample(range(1, 30), 3)), strict=True)) for k in names}
    loss = exact(
        {k: dict(zip(choices[k], sorted((rng.random() for _ in range(3)), reverse=True), strict=True)) for k in names}
    )
    bound = sum(min(row.values()) for row in size.values()) + rng.randint(0, 12 * layers)
    problem = Problem(choices, ties_of(grids), (Limit("memory", Fraction(bound), ((exact(size), Fraction(0)),)),))
    rows = Rows.of(problem, grids)
    matrix = np.zeros((len(rows.rows),) * 2)
    for one, other in itertools.pairwise(names) if pairwise else ():
        for w, v in itertools.product((2, 4, 8), repeat=2):
            i, j = rows.index[f"w:{one}", w], rows.index[f"w:{other}", v]
            matrix[i, j] = matrix[j, i] = rng.uniform(-0.4, 0.4)
    return problem, loss, Pairs(rows.rows, matrix, grids), size


def by_dynamic_programming(
    problem: Problem, loss: Table, pairs: Pairs, size: dict[str, dict[tuple[int, int], int]]
) -> Fraction:
    """Least loss over (bytes used, bits of the last layer), layer by layer."""
    budget = int(problem.limits[0].bound)
    names = list(problem.choices)
    states: dict[tuple[int, tuple[int, int] | None], Fraction] = {(0, None): Fraction(0)}
    for i, layer in enumerate(names):
        further: dict[tuple[int, tuple[int, int] | None], Fraction] = {}
        for (used, last), value in states.items():
            for bits in problem.choices[layer]:
                spent = used + size[layer][bits]
                if spent > budget:
                    continue
                added = loss[layer][bits]
                if last is not None:
                    r, s = pairs.index[f"w:{names[i - 1]}", last[0]], pairs.index[f"w:{layer}", bits[0]]
                    added += Fraction(float(pairs.matrix[r, s]))
                key = spent, bits
                further[key] = min(further.get(key, value + added), value + added)
        states = further
    return min(states.values())


@pytest.mark.parametrize("seeds", thousand(100, quick=3))
def test_linear_programs_equal_dynamic_programming(seeds: range) -> None:
    for seed in seeds:
        problem, loss, pairs, size = chain(seed, 8, pairwise=False)
        found = lexicographic(problem, [loss], seconds=PATIENT)
        assert found.status == "optimal"
        assert found.objective == by_dynamic_programming(problem, loss, pairs, size)


@pytest.mark.parametrize("seeds", thousand(20, quick=2))
def test_quadratic_programs_equal_dynamic_programming(seeds: range) -> None:
    for seed in seeds:
        problem, loss, pairs, size = chain(seed, 5, pairwise=True)
        found = minimise_quadratic(problem, loss, pairs, seconds=PATIENT).solution
        assert found.status == "optimal"
        assert float(found.objective) == pytest.approx(
            float(by_dynamic_programming(problem, loss, pairs, size)), abs=1e-9
        )


def cancelling(seed: int, layers: int) -> tuple[Problem, Table, Pairs, Plan]:
    """½ |Σ δ|² of errors planted so that one plan's errors cancel exactly: its loss is 0, every other one's is not."""
    rng = np.random.default_rng(seed)
    names = [f"l{i}" for i in range(layers)]
    choices: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(names, ((2, 8), (4, 8), (8, 8)))
    grids = {k: f"g{i}" for i, k in enumerate(names)}
    problem = Problem(choices, ties_of(grids))
    rows = Rows.of(problem, grids)
    errors = {row: rng.normal(size=6) if row[0].startswith("w:") else np.zeros(6) for row in rows.rows}
    planted: Plan = {k: choices[k][int(rng.integers(3))] for k in names}
    last = ("w:" + names[-1], planted[names[-1]][0])
    errors[last] = -sum((errors[f"w:{k}", planted[k][0]] for k in names[:-1]), np.zeros(6))
    vectors = np.array([errors[row] for row in rows.rows])
    gram = vectors @ vectors.T
    loss = exact(
        {k: {b: float(gram[i, i]) / 2 for b in choices[k] for i in (rows.index[f"w:{k}", b[0]],)} for k in names}
    )
    matrix = gram.copy()
    matrix[rows.owner[:, None] == rows.owner[None, :]] = 0.0
    return problem, loss, Pairs(rows.rows, matrix, grids), planted


def test_planted_optima_are_found_and_the_linear_program_misses_them() -> None:
    missed = 0
    for seed in range(20):
        problem, loss, pairs, planted = cancelling(seed, 5)
        found = minimise_quadratic(problem, loss, pairs).solution
        assert found.plan == planted
        assert abs(float(found.objective)) < 1e-9
        missed += minimise(problem, loss).plan != planted
    assert missed > 10


def test_without_interactions_it_is_the_linear_program() -> None:
    problem, loss, pairs, costs = random_instance(3)
    none = Pairs(pairs.rows, np.zeros_like(pairs.matrix), pairs.grids)
    found, plain = minimise_quadratic(problem, loss, none, tie_break=costs).solution, minimise(problem, loss)
    assert (found.plan, found.objective, found.status) == (plain.plan, plain.objective, "optimal")


def test_the_exact_linearisation_alone_proves_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither next-best plans nor a good start; where it is switched off too, a gap is stated."""
    monkeypatch.setattr(quadratic, "MOST_NEXT", 0)
    proved = 0
    for seed in range(40):
        problem, loss, pairs, costs = random_instance(seed)
        plans = every_plan(problem)
        if not plans:
            continue
        best = min(loss_of(loss, pairs, plan) for plan in plans)
        found = minimise_quadratic(problem, loss, pairs, tie_break=costs).solution
        assert float(found.objective - best) <= 1e-9
        assert found.status == "optimal"
        monkeypatch.setattr(quadratic, "MOST_PRODUCTS", 0)
        open_ = minimise_quadratic(problem, loss, pairs, tie_break=costs).solution
        monkeypatch.undo()
        monkeypatch.setattr(quadratic, "MOST_NEXT", 0)
        assert open_.bound <= float(best) + 1e-9
        assert (open_.status == "optimal") == (open_.gap == 0.0)
        proved += open_.status == "optimal"
    assert 0 < proved < 40


def large(seed: int) -> tuple[Problem, Table, Pairs]:
    """Twenty layers of 2 to 8 bits by 4 to 8, a Gram matrix, half of the 8-bit bytes."""
    rng = np.random.default_rng(seed)
    names = [f"l{i}" for i in range(20)]
    grids = {k: f"g{i - (i % 3 == 2)}" for i, k in enumerate(names)}
    choices = {k: tuple(itertools.product(range(2, 9), range(4, 9))) for k in names}
    size = {k: int(rng.integers(200, 9000)) for k in names}
    scale = {k: 10 ** rng.uniform(-1, 1) for k in (*names, *dict.fromkeys(grids.values()))}
    loss = exact(
        {k: {(w, a): scale[k] * 4.0**-w + scale[grids[k]] * 4.0**-a for w, a in row} for k, row in choices.items()}
    )
    memory = exact({k: {(w, a): size[k] * w // 8 for w, a in row} for k, row in choices.items()})
    limit = Limit("memory", Fraction(sum(size.values()) // 2), ((memory, Fraction(0)),))
    problem = Problem(choices, ties_of(grids), (limit,))
    rows = Rows.of(problem, grids)
    amplitude = np.array([np.sqrt(scale[subject[2:]] * 4.0**-bits) for subject, bits in rows.rows])
    common = rng.normal(size=(40, len(rows.spans)))[:, rows.owner] * 0.5
    vectors = (common + 0.3 * rng.normal(size=(40, len(rows.rows)))) * amplitude
    matrix = vectors.T @ vectors / 40
    matrix[rows.owner[:, None] == rows.owner[None, :]] = 0.0
    return problem, loss, Pairs(rows.rows, matrix, grids)


def test_a_large_program_is_bounded_beats_the_linear_one_and_gives_the_same_plan_twice() -> None:
    problem, loss, pairs = large(0)
    found = minimise_quadratic(problem, loss, pairs)
    again = minimise_quadratic(problem, loss, pairs)
    assert found.solution.plan is not None
    assert problem.allows(found.solution.plan)
    assert 0 <= found.solution.gap < 0.05
    linear = minimise(problem, loss).plan
    assert linear is not None
    assert found.solution.objective < loss_of(loss, pairs, linear)
    assert (found.solution.plan, found.plans) == (again.solution.plan, again.plans)
    # No change of one or two subjects improves it.
    rows = Rows.of(problem, pairs.grids)
    folded, between = own_folded(rows, loss, pairs)
    assert Search(problem, rows, folded, between).descend(found.solution.plan) == found.solution.plan


def test_pairs_inside_one_layer_count_once_and_ties_hold() -> None:
    """Weights and input of one layer interact too; the plan's loss is the same however it is counted."""
    for seed in range(20):
        problem, loss, pairs, _ = random_instance(seed)
        rows = Rows.of(problem, pairs.grids)
        folded, between = own_folded(rows, loss, pairs)
        matrix = rows.spread(folded) + between
        for plan in every_plan(problem):
            picked = rows.picked(plan)
            assert rows.plan(picked.tolist()) == plan
            whole = float(loss_of(loss, pairs, plan))
            assert float(matrix[np.ix_(picked, picked)].sum() / 2) == pytest.approx(whole, abs=1e-12)
            assert float(total(folded, plan)) + float(between[np.ix_(picked, picked)].sum() / 2) == pytest.approx(whole)


def test_the_bounding_table_is_below_every_plan() -> None:
    """Directly, because a solution's bound is capped by a plan that is usually the best one."""
    tight = 0
    for seed in range(60):
        problem, loss, pairs, _ = random_instance(seed)
        plans = every_plan(problem)
        if not plans:
            continue
        rows = Rows.of(problem, pairs.grids)
        folded, between = own_folded(rows, loss, pairs)
        found = lower_bound(problem, rows, folded, between, 10.0, anchors=plans[:1])
        best = min(float(loss_of(loss, pairs, plan)) for plan in plans)
        assert found.value <= best + 1e-9, seed
        for plan in plans:
            assert float(found.of(plan)) <= float(loss_of(loss, pairs, plan)) + 1e-9
        tight += found.value > best - 0.05
    assert tight > 20
