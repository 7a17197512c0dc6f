"""The front as a row of plans, plans solved again from their file, protected layers, and layers with another metric."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from passes.plan.mix_metrics import MixMetrics
from passes.plan.pareto import hull_bound, sweep
from passes.plan.plan_front import PlanFront
from passes.plan.resolve import Resolver, interactions_from_json, interactions_to_json, shadow_prices
from passes.plan.solve_bits import SolveBits
from passes.plan.tables import Tables
from passes.plan.uniform_bits import UniformBits
from qcompile.errors import DataError, InfeasibleError, UsageError
from qcompile.ir import Graph
from qcompile.pm.facts import COSTS, GROUPS, INTERACTIONS, LOSS, Interactions, LossTable
from tests.passes.plan.test_plan_passes import LAYERS, MENU, bits_of, context, noted

SUBJECTS = tuple((f"w:{layer}", w) for layer in LAYERS for w in (4, 8)) + tuple(
    (f"a:{grid}", a) for grid in ("x", "act", "sum") for a in (4, 8)
)


def interacting(terms: dict[tuple[tuple[str, int], tuple[str, int]], float]) -> Graph:
    """The toy network with terms between rows."""
    matrix = np.zeros((len(SUBJECTS),) * 2)
    for (one, other), value in terms.items():
        i, j = SUBJECTS.index(one), SUBJECTS.index(other)
        matrix[i, j] = matrix[j, i] = value
    found = Interactions(tuple(s for s, _ in SUBJECTS), tuple(b for _, b in SUBJECTS), matrix, "planted")
    base = noted()
    return base.with_notes(base.notes.with_table(INTERACTIONS, {"": found}))


def test_interactions_change_the_plan_and_are_counted_in_the_objective() -> None:
    """Left and right cost 4 and 8 more at 4 bits; together they make up for each other, stem and head do not."""
    free = interacting({(("w:left", 4), ("w:right", 4)): -11.0})
    plain = SolveBits(memory=3000).run(noted(), context())
    result = SolveBits(memory=3500).run(free, context())
    assert bits_of(result)["left"][0] == bits_of(result)["right"][0] == 4
    assert result.report.facts["solver"]["quadratic"] is True
    assert result.report.facts["solver"]["objective"] == pytest.approx(60 + 4 + 8 - 11)
    assert result.report.facts["solver"]["status"] == "optimal"
    assert result.report.facts["predicted"][0]["loss"] == pytest.approx(61)
    assert plain.report.facts["solver"]["quadratic"] is False
    against = interacting({(("w:left", 4), ("w:right", 4)): 100.0})
    assert bits_of(SolveBits(memory=3000).run(against, context())) == {
        "stem": (8, 8), "left": (4, 8), "right": (8, 8), "head": (4, 8),
    }  # fmt: skip


def test_without_limits_a_negative_term_is_worth_fewer_bits() -> None:
    graph = interacting({(("w:left", 4), ("w:right", 4)): -13.0})
    assert bits_of(SolveBits().run(graph, context()))["left"] == (4, 8)


def test_terms_that_are_not_numbers_are_refused() -> None:
    graph = interacting({(("w:left", 4), ("w:right", 4)): math.nan})
    with pytest.raises(DataError, match=r"an inter-layer term \(planted\) is not a number"):
        SolveBits().run(graph, context())


def test_the_closed_form_is_an_answer_of_its_own() -> None:
    exact = SolveBits(memory=3000).run(noted(), context())
    quick = SolveBits(memory=3000, method="closed-form").run(noted(), context())
    assert bits_of(quick) == bits_of(exact)
    assert quick.report.facts["solver"]["bound"] <= quick.report.facts["solver"]["objective"]
    with pytest.raises(InfeasibleError, match="the smallest plan takes 2000 B"):
        SolveBits(memory=1999, method="closed-form").run(noted(), context())
    with pytest.raises(UsageError, match="no method 'magic'"):
        SolveBits(method="magic").run(noted(), context())


def test_protected_layers_keep_the_widest_bits() -> None:
    data = context(protect=("st.*", "right"))
    for result in (SolveBits(memory=3000).run(noted(), data), UniformBits(w=4, a=4).run(noted(), data)):
        plan = bits_of(result)
        assert plan["stem"] == plan["right"] == (8, 8)
        assert plan["left"] == (4, 8)
    pinned = context(protect=(".*",), pins={"head": (4, 8)})
    assert bits_of(SolveBits().run(noted(), pinned))["head"] == (4, 8)
    with pytest.raises(UsageError, match="protect 'nothing' matches no layer"):
        SolveBits().run(noted(), context(protect=("nothing",)))
    with pytest.raises(UsageError, match="not a regular expression"):
        SolveBits().run(noted(), context(protect=("(",)))


class TestFront:
    @pytest.mark.parametrize("axis", ["memory", "latency"])
    @pytest.mark.parametrize("graph", [noted(), interacting({(("w:left", 4), ("w:head", 4)): -3.0})])
    def test_plans_fall_in_cost_and_rise_in_loss(self, axis: str, graph: Graph) -> None:
        rows = PlanFront(axis=axis, points=9, latency=3.7e-3).run(graph, context()).report.facts["front"]
        costs = [row["predicted"][axis] for row in rows]
        losses = [row["predicted"]["loss"] for row in rows]
        assert len(rows) >= 4
        assert costs == sorted(set(costs), reverse=True)
        assert losses == sorted(set(losses))
        assert all(row["predicted"]["latency"] <= 3.7e-3 for row in rows)
        for row in rows:
            best = SolveBits(latency=3.7e-3 if axis == "memory" else row["predicted"][axis] * (1 + 1e-9),
                             memory=int(row["predicted"][axis]) if axis == "memory" else None)  # fmt: skip
            assert best.run(graph, context()).report.facts["solver"]["objective"] == pytest.approx(
                row["predicted"]["loss"]
            )
            assert row["bound"] is None or row["bound"] <= row["predicted"]["loss"] * (1 + 1e-12)

    def test_bounds_are_those_of_the_sweep(self) -> None:
        tables = Tables.read(noted(), context())
        from passes.plan.ilp import Problem

        corners = sweep(Problem(tables.choices, tables.ties), tables.loss, tables.memory)
        for row in PlanFront(points=5).run(noted(), context()).report.facts["front"]:
            bound = hull_bound(corners, Fraction(row["predicted"]["memory"]))
            assert bound is not None
            assert row["bound"] == float(bound)

    def test_refusals(self) -> None:
        with pytest.raises(UsageError, match="no axis 'speed'"):
            PlanFront(axis="speed").run(noted(), context())
        with pytest.raises(InfeasibleError, match="the fastest plan takes 2 ms"):
            PlanFront(latency=1e-3).run(noted(), context())


class TestMetrics:
    def run(self, groups: list[tuple[str, str, dict[str, LossTable]]]) -> Any:
        return MixMetrics().run(noted(), context(metrics=groups))

    def other(self, scale: float) -> dict[str, LossTable]:
        """Another opinion: only activations matter."""
        return {layer: LossTable({(w, a): scale * (9 - a) for w, a in MENU}) for layer in LAYERS}

    def test_the_scale_of_the_other_metric_does_not_matter(self) -> None:
        found = [dict(self.run([("left|right", "other", self.other(s))]).graph.notes[LOSS]) for s in (1.0, 1e6)]
        for layer in LAYERS:
            for bits in MENU:
                assert found[0][layer].loss[bits] == pytest.approx(found[1][layer].loss[bits])
        before = noted().notes[LOSS]
        assert found[0]["stem"] == before["stem"]
        for layers in (("left", "right"),):
            means = [
                math.fsum(math.log(table[k].loss[b]) for k in layers for b in MENU) for table in (found[0], before)
            ]
            assert means[0] == pytest.approx(means[1])
        assert found[0]["left"].loss[4, 8] == found[0]["left"].loss[8, 8]

    def test_the_plan_follows_the_metric_of_its_layers(self) -> None:
        graph = self.run([("stem", "other", self.other(1.0))]).graph
        assert bits_of(SolveBits(memory=3500).run(graph, context()))["stem"][0] == 4
        assert bits_of(SolveBits(memory=3500).run(noted(), context()))["stem"][0] == 8

    def test_the_last_match_wins_and_refusals(self) -> None:
        groups = [(".*", "first", self.other(1.0)), ("head", "second", self.other(5.0))]
        facts = self.run(groups).report.facts["groups"]
        assert facts[0]["layers"] == ["stem", "left", "right"]
        assert facts[1] == {"pattern": "head", "estimator": "second", "layers": ["head"], "scale": facts[1]["scale"]}
        with pytest.raises(UsageError, match="metric 'nothing' matches no layer"):
            self.run([("nothing", "other", self.other(1.0))])
        with pytest.raises(DataError, match="cannot be compared"):
            self.run([("stem", "other", {"stem": LossTable(dict.fromkeys(MENU, 0.0))})])


def record(graph: Graph, result: Any) -> dict[str, Any]:
    """What plan.json holds of a plan."""
    notes = graph.notes
    found = notes.get(INTERACTIONS).get("")
    layers = {
        layer: {
            "bits": list(bits), "reads": notes[GROUPS][layer].grid,
            "choices": [
                {"bits": list(b), "loss": notes[LOSS][layer].loss[b], "seconds": notes[COSTS][layer].seconds[b],
                 "bytes": notes[COSTS][layer].bytes[b[0]]}
                for b in MENU
            ],
        }
        for layer, bits in bits_of(result).items()
    }  # fmt: skip
    stored = None if found is None else interactions_to_json(found)
    return json.loads(json.dumps({"layers": layers, "fixed_seconds": 0.0, "interactions": stored}))  # type: ignore[no-any-return]


class TestResolve:
    @pytest.mark.parametrize("graph", [noted(), interacting({(("w:left", 4), ("w:right", 4)): -5.0})])
    def test_more_bytes_give_what_solving_with_them_gives(self, graph: Graph) -> None:
        result = SolveBits(memory=2500).run(graph, context())
        resolver = Resolver.of(record(graph, result), ())
        assert resolver is not None
        assert resolver.total("memory") == 2500
        found = resolver.with_more("memory", Fraction(500), ["memory"])
        best = SolveBits(memory=3000).run(graph, context())
        assert found["loss"] == pytest.approx(best.report.facts["solver"]["objective"])
        assert found["saved"] == pytest.approx(result.report.facts["solver"]["objective"] - found["loss"])
        assert {k: tuple(after) for k, (_, after) in found["changes"].items()} == {
            k: bits for k, bits in bits_of(best).items() if bits != bits_of(result)[k]
        }

    def test_too_little_changes_nothing(self) -> None:
        resolver = Resolver.of(record(noted(), SolveBits(memory=2500).run(noted(), context())), ())
        assert resolver is not None
        found = resolver.with_more("memory", Fraction(1), ["memory"])
        assert (found["saved"], found["changes"]) == (0.0, {})
        assert [row["axis"] for row in shadow_prices(resolver, ["memory"])] == ["memory"]
        assert {row["axis"] for row in shadow_prices(resolver, [])} == {"memory", "latency"}

    def test_pinned_layers_stay(self) -> None:
        stored = record(noted(), SolveBits(memory=2500).run(noted(), context()))
        resolver = Resolver.of(stored, ["stem", "head"])
        assert resolver is not None
        found = resolver.with_more("memory", Fraction(2000), ["memory"])
        assert set(found["changes"]) <= {"left", "right"}

    def test_a_given_plan_has_nothing_to_solve(self) -> None:
        stored = record(noted(), SolveBits().run(noted(), context()))
        stored["layers"]["stem"]["choices"] = []
        assert Resolver.of(stored, ()) is None

    def test_interactions_survive_the_file(self) -> None:
        graph = interacting({(("w:left", 4), ("w:right", 4)): 0.1, (("a:x", 4), ("w:head", 8)): -2.5})
        found = graph.notes[INTERACTIONS][""]
        back = interactions_from_json(json.loads(json.dumps(interactions_to_json(found))))
        assert np.array_equal(back.matrix, found.matrix.astype(np.float32))
        assert replace(back, matrix=found.matrix).subjects == found.subjects
