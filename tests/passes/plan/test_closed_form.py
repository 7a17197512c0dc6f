"""The front from one sweep, and bits without a solver: against brute force and the analytic optimum."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import pytest

from passes.plan.closed_form import allocate, coefficient, continuous_bits
from passes.plan.ilp import Limit, Problem, exact, minimise, total
from passes.plan.pairwise import Rows
from passes.plan.pareto import hull_bound, sweep, within
from tests.passes.plan.test_ilp import every_plan, random_instance


def test_the_sweep_gives_every_corner_of_the_convex_hull() -> None:
    for seed in range(80):
        problem, (loss, latency, _) = random_instance(seed)
        free = Problem(problem.choices, problem.ties)
        corners = sweep(free, loss, latency)
        plans = every_plan(free)
        if not plans:
            assert corners == ()
            continue
        points = [(total(latency, plan), total(loss, plan)) for plan in plans]
        assert corners[0].cost == min(cost for cost, _ in points)
        assert corners[-1].loss == min(value for _, value in points)
        for corner in corners:
            assert free.allows(corner.plan)
            assert (corner.cost, corner.loss) == (total(latency, corner.plan), total(loss, corner.plan))
        prices = [corner.price for corner in corners[1:]]
        assert prices == sorted(set(prices), reverse=True)
        # No plan lies below the hull, and each corner is a plan that is best at some price.
        for price in (*prices, *((a + b) / 2 for a, b in pairwise(prices))):
            best = min(value + price * cost for cost, value in points)
            assert min(corner.loss + price * corner.cost for corner in corners) == best


def test_the_hull_bounds_every_plan_of_a_budget() -> None:
    for seed in range(60):
        problem, (loss, latency, _) = random_instance(seed)
        free = Problem(problem.choices, problem.ties)
        corners, plans = sweep(free, loss, latency), every_plan(free)
        for plan in plans[::7]:
            budget = total(latency, plan)
            bound = hull_bound(corners, budget)
            best = min(total(loss, p) for p in plans if total(latency, p) <= budget)
            assert bound is not None
            assert bound <= best
            chosen = within(corners, Problem(free.choices, free.ties, (Limit("l", budget, ((latency, Fraction(0)),)),)))
            assert chosen is not None
            assert total(loss, chosen) >= best
        if corners:
            assert hull_bound(corners, corners[0].cost - 1) is None
            assert hull_bound(corners, corners[-1].cost + 1) == corners[-1].loss


def test_continuous_bits_are_the_analytic_optimum() -> None:
    """Inside the box all layers pay the same for a bit; at its walls a layer would pay more (less) than that."""
    rng = random.Random(0)
    for _ in range(200):
        layers = [f"l{i}" for i in range(rng.randint(1, 12))]
        weights = {k: 10 ** rng.uniform(-4, 4) for k in layers}
        elements = {k: float(rng.randint(10, 10_000)) for k in layers}
        budget = sum(elements.values()) * rng.uniform(2.05, 7.95)
        bits = continuous_bits(weights, elements, budget, 2, 8)
        assert all(2 <= b <= 8 for b in bits.values())
        assert sum(elements[k] * b for k, b in bits.items()) == pytest.approx(budget)
        slope = {k: weights[k] * 4.0 ** -bits[k] / elements[k] for k in layers}
        inside = [slope[k] for k in layers if 2 < bits[k] < 8]
        level = inside[0] if inside else None
        for k in layers:
            if level is not None and 2 < bits[k] < 8:
                assert slope[k] == pytest.approx(level)
            elif level is not None:
                assert slope[k] <= level * (1 + 1e-9) if bits[k] == 2 else slope[k] >= level * (1 - 1e-9)


def test_a_layer_whose_bits_do_not_matter_takes_the_fewest() -> None:
    assert continuous_bits({"a": 1.0, "b": 0.0}, {"a": 10.0, "b": 10.0}, 100.0, 2, 8) == {"a": 8, "b": 2}
    assert coefficient({4: 0.0, 8: 0.0}) == 0.0
    assert coefficient({4: 3 * 4.0**-4, 8: 3 * 4.0**-8}) == pytest.approx(3.0)


def test_the_closed_form_keeps_all_limits_and_is_near_the_optimum() -> None:
    rng = random.Random(1)
    ratios = []
    for _ in range(25):
        layers = [f"l{i}" for i in range(15)]
        menu = [(w, a) for w in (2, 3, 4, 5, 6, 8) for a in (4, 8)]
        size = {k: rng.randint(100, 5000) for k in layers}
        scale = {k: 10 ** rng.uniform(-2, 2) for k in layers}
        loss = exact({k: {(w, a): scale[k] * (4.0**-w + 0.1 * 4.0**-a) for w, a in menu} for k in layers})
        memory = exact({k: {(w, a): size[k] * w // 8 for w, a in menu} for k in layers})
        latency = exact({k: {(w, a): size[k] * (w + a) / 16 for w, a in menu} for k in layers})
        limits = (
            Limit("memory", Fraction(sum(size.values()) * rng.choice([35, 50, 70]) // 100), ((memory, Fraction(0)),)),
            Limit("latency", Fraction(sum(size.values()) * 8 // 10), ((latency, Fraction(0)),)),
        )
        grids = {k: f"g{i // 2}" for i, k in enumerate(layers)}
        ties = tuple(tuple(k for k in layers if grids[k] == g) for g in dict.fromkeys(grids.values()))
        problem = Problem(dict.fromkeys(layers, tuple(menu)), ties, limits)
        plan = allocate(problem, Rows.of(problem, grids), loss, None, memory)
        assert plan is not None
        assert problem.allows(plan)
        ratios.append(float(total(loss, plan) / minimise(problem, loss).objective))
    assert min(ratios) >= 1
    assert sorted(ratios)[len(ratios) // 2] < 1.1
    assert max(ratios) < 1.6


def test_no_plan_where_nothing_fits() -> None:
    choices = {"l": ((4, 8), (8, 8))}
    memory = exact({"l": {(4, 8): 10, (8, 8): 20}})
    problem = Problem(choices, (("l",),), (Limit("memory", Fraction(9), ((memory, Fraction(0)),)),))
    loss = exact({"l": {(4, 8): 1.0, (8, 8): 0.0}})
    assert allocate(problem, Rows.of(problem, {"l": "g"}), loss, None, memory) is None
