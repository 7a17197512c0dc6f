"""confirm-plan measures the weights it is given, and the compiler asks it where it could change the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passes.plan.confirm_plan import ConfirmPlan
from passes.plan.simulate import Simulator
from passes.quantize.round_weights import RoundWeights
from passes.structure import Structure
from qcompile import planning
from qcompile.errors import PassContractError
from qcompile.ir import Graph
from qcompile.pm.facts import BITS, RANGES, ROUNDED, BitChoice, Rounded
from tests.passes.analysis.estimator_nets import DATA, calibrated, context

LAYERS = ("c1", "c2", "fc")


def plan(w: int) -> dict[str, BitChoice]:
    return dict.fromkeys(LAYERS, BitChoice(w, 8))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return calibrated()


def rounded(graph: Graph, w: int) -> Mapping[str, Rounded]:
    noted = graph.with_notes(graph.notes.with_table(BITS, plan(w)))
    return RoundWeights("gptq").run(noted, context()).graph.notes[ROUNDED]


def spoilt(table: Mapping[str, Rounded]) -> dict[str, Rounded]:
    """The same bits with weights that are of no use."""
    return {layer: replace(given, q=-given.q) for layer, given in table.items()}


def test_weights_decide_that_bits_do_not(graph: Graph) -> None:
    good = [(plan(4), rounded(graph, 4)), (plan(8), rounded(graph, 8))]
    result = ConfirmPlan().run(graph, context(data={"finalists": good}))
    facts = result.report.facts
    assert facts["chosen"] == 1
    assert result.graph.notes[BITS] == plan(8)
    assert "finalist 1 of 2" in result.report.done[0]
    bad = [good[0], (plan(8), spoilt(good[1][1]))]
    other = ConfirmPlan().run(graph, context(data={"finalists": bad}))
    assert other.report.facts["chosen"] == 0
    assert other.graph.notes[BITS] == plan(4)
    assert other.report.facts["measured"][0] == facts["measured"][0]
    # What is measured is what the weights give, biases included.
    shifted = {layer: replace(given, b=given.b + 1.0) for layer, given in good[0][1].items()}
    third = ConfirmPlan().run(graph, context(data={"finalists": [(plan(4), shifted)]})).report.facts
    assert third["measured"][0] != facts["measured"][0]
    plain = Simulator(graph, graph.notes[RANGES], [{"x": DATA}]).measure(plan(4))
    assert facts["measured"][0]["loss"] != plain.loss


def test_the_selected_plan_yields_to_a_surely_better_one_only(graph: Graph) -> None:
    table = rounded(graph, 4)
    near = {layer: replace(given, scale=given.scale * (1 + 1e-4)) for layer, given in table.items()}
    pair = [(plan(4), table), (plan(4), near)]
    losses = [
        row["loss"] for row in ConfirmPlan().run(graph, context(data={"finalists": pair})).report.facts["measured"]
    ]
    assert losses[0] != losses[1]
    for first in (0, 1):
        turned = pair[first:] + pair[:first]
        assert ConfirmPlan().run(graph, context(data={"finalists": turned})).report.facts["chosen"] == 0


def test_it_needs_finalists(graph: Graph) -> None:
    with pytest.raises(PassContractError, match="finalists"):
        ConfirmPlan().run(graph, context())
    with pytest.raises(PassContractError, match="finalists"):
        ConfirmPlan().run(graph, replace(context(data={"finalists": [(plan(4), {})]}), holdout=None))


class Asked:
    """As much of a compiler as `planning.confirmed` looks at."""

    def __init__(self, graph: Graph, held: int, rounding: str = "gptq", chosen: int = 1) -> None:
        self.graph, self.rounding, self.chosen = graph, rounding, chosen
        self.reports: dict[str, Any] = {}
        self.ran: list[Any] = []
        self.held = held

    def holdout(self) -> Any:
        return iter([{"x": np.zeros((self.held - 10, 1))}, {"x": np.zeros((10, 1))}])

    def run_passes(self, graph: Graph, specs: list[Any], **more: Any) -> tuple[Graph, None]:
        self.ran.append((specs[0], more.get("data")))
        if specs == ["confirm-plan"]:
            rows = [{"loss": 0.2, "agreement": 0.5}, {"loss": 0.1, "agreement": 0.75}]
            self.reports["confirm-plan"] = type("Said", (), {"facts": {"chosen": self.chosen, "measured": rows}})
            return graph, None
        given = Rounded(graph.notes[BITS]["c1"].w, np.zeros(1, np.int8), np.ones(1), np.zeros(1))
        return graph.with_notes(graph.notes.with_table(ROUNDED, {"c1": given})), None


CANDIDATES = [plan(5), plan(3), plan(4)]
SELECTED = {"chosen": 0, "measured": [{"loss": 0.1}, {"loss": 0.3}, {"loss": 0.2}]}


def confirmed(asked: Asked, uniform: list[int], selected: Mapping[str, Any]) -> Any:
    inputs = {"candidates": CANDIDATES}
    return planning.confirmed(asked, inputs, uniform, selected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("chosen", "taken"), [(0, 0), (1, 2)])
def test_the_best_uniform_plan_is_the_other_finalist(graph: Graph, chosen: int, taken: int) -> None:
    asked = Asked(graph, 32, chosen=chosen)
    index, rows = confirmed(asked, [1, 2], SELECTED)
    assert index == taken
    assert rows == {0: {"loss": 0.2, "agreement": 0.5}, 2: {"loss": 0.1, "agreement": 0.75}}
    assert [spec for spec, _ in asked.ran] == [("round-weights", {"method": "gptq"})] * 2 + ["confirm-plan"]
    data = asked.ran[-1][1]
    assert [(plan, table["c1"].bits) for plan, table in data["finalists"]] == [(plan(5), 5), (plan(4), 4)]


@pytest.mark.parametrize(
    ("held", "rounding", "uniform", "chosen", "second"),
    [
        (31, "gptq", [2], 0, 0.2),
        (32, "nearest", [2], 0, 0.2),
        (32, "gptq", [], 0, 0.2),
        (32, "gptq", [2], 2, 0.2),
        (32, "gptq", [2], 0, 0.41),
    ],
)
def test_where_it_could_not_change_the_choice_nothing_is_rounded(
    graph: Graph, held: int, rounding: str, uniform: list[int], chosen: int, second: float
) -> None:
    asked = Asked(graph, held, rounding)
    losses = [{"loss": 0.1}, {"loss": 0.3}, {"loss": second}]
    assert confirmed(asked, uniform, {"chosen": chosen, "measured": losses}) == (chosen, {})
    assert asked.ran == []


def test_the_layers_are_those_of_the_network(graph: Graph) -> None:
    assert set(Structure(graph).layers) == set(LAYERS)
