"""solve-bits, uniform-bits and plan-from-file: what they plan, and the exact text of their refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.plan.plan_from_file import PlanFromFile
from passes.plan.solve_bits import SolveBits
from passes.plan.uniform_bits import UniformBits
from qcompile.errors import DataError, InfeasibleError, UsageError
from qcompile.ir import BATCH, Graph, GraphBuilder, Notes, TensorType
from qcompile.pm.base import PassContext, PassResult
from qcompile.pm.facts import BITS, COSTS, GROUPS, LOSS, Bits, CostTable, GridGroup, LossTable
from qcompile.target.model import Target

TARGET = Target("toy", "for tests", "nowhere:Backend", weight_bits=(4, 8), act_bits=(4, 8))
LAYERS = ("stem", "left", "right", "head")
MENU: tuple[Bits, ...] = tuple(itertools.product((4, 8), (4, 8)))


def graph() -> Graph:
    """stem → (left, right) → add → head; left and right read the same value, so they are tied."""
    b = GraphBuilder("toy", "float")
    x = b.input("x", TensorType((BATCH, 4), "f32"))
    w = {"w": np.eye(4, dtype=np.float32)}
    stem = b.add("linear", [x], name="stem", consts=w)
    act = b.add("clip", [stem], name="act", attrs={"lo": 0.0})
    both = [b.add("linear", [act], name=name, consts=w) for name in ("left", "right")]
    b.output("y", b.add("linear", [b.add("add", both, name="sum")], name="head", consts=w))
    return b.build()


def noted(**losses: Mapping[Bits, float]) -> Graph:
    """Loss falls with the bits; 8-bit layers take 1 ms and 1000 bytes, 4-bit ones half of it."""
    sensitivity = dict(zip(LAYERS, (8.0, 1.0, 2.0, 4.0), strict=True))
    loss = {k: {(w, a): s * (12 - w) + s * (8 - a) / 4 for w, a in MENU} for k, s in sensitivity.items()}
    loss |= {k: dict(row) for k, row in losses.items()}
    costs = CostTable({(w, a): 1e-3 * (w + a) / 16 for w, a in MENU}, {4: 500, 8: 1000}, "measured")
    grids = {"stem": "x", "left": "act", "right": "act", "head": "sum"}
    notes = (
        Notes()
        .with_table(LOSS, {k: LossTable(row) for k, row in loss.items()})
        .with_table(COSTS, {**dict.fromkeys(LAYERS, costs), "": costs})
        .with_table(GROUPS, {k: GridGroup(v) for k, v in grids.items()})
    )
    return graph().with_notes(notes)


def context(**data: Any) -> PassContext:
    return PassContext(TARGET, data=data)


def bits_of(result: PassResult) -> dict[str, Bits]:
    return {layer: (choice.w, choice.a) for layer, choice in result.graph.notes[BITS].items()}


def test_without_limits_the_least_loss_is_taken() -> None:
    result = SolveBits().run(noted(), context())
    assert bits_of(result) == dict.fromkeys(LAYERS, (8, 8))
    assert result.report.facts["solver"] | {"seconds": 0} == {
        "status": "optimal", "objective": 60.0, "bound": 60.0, "gap": 0.0, "seconds": 0,
        "quadratic": False,
    }  # fmt: skip


def test_a_memory_limit_spares_the_sensitive_layers() -> None:
    assert bits_of(SolveBits(memory=3000).run(noted(), context())) == {
        "stem": (8, 8), "left": (4, 8), "right": (4, 8), "head": (8, 8),
    }  # fmt: skip


def test_tied_layers_take_the_same_activation_bits() -> None:
    for latency in np.linspace(2.05e-3, 3.9e-3, 12):
        plan = bits_of(SolveBits(latency=float(latency)).run(noted(), context()))
        assert plan["left"][1] == plan["right"][1]
        assert sum(1e-3 * (w + a) / 16 for w, a in plan.values()) <= latency


def test_the_scale_counts_for_layers_and_the_fixed_part() -> None:
    """(4 layers · 1 ms + 1 ms) · 2 = 10 ms fits exactly; anything more in the fixed part does not."""
    plan = bits_of(SolveBits(latency=0.01).run(noted(), context(fixed_seconds=0.001, latency_scale=2.0)))
    assert set(plan.values()) == {(8, 8)}
    plan = bits_of(SolveBits(latency=0.01).run(noted(), context(fixed_seconds=0.00101, latency_scale=2.0)))
    assert set(plan.values()) != {(8, 8)}


def test_equal_losses_are_decided_by_latency_then_bytes() -> None:
    flat = dict.fromkeys(MENU, 1.0)
    plan = bits_of(SolveBits().run(noted(stem=flat, head=flat), context()))
    assert plan["stem"] == plan["head"] == (4, 4)


def test_peak_of_activations() -> None:
    terms = [{"x": {4: 50, 8: 100}, "act": {4: 100, 8: 200}}, {"act": {4: 100, 8: 200}, "other": {8: 150}}]
    ctx = context(activation_terms=terms)
    result = SolveBits(activations=340).run(noted(), ctx)
    assert bits_of(result) == {"stem": (8, 8), "left": (8, 4), "right": (8, 4), "head": (8, 8)}
    assert result.report.facts["predicted"][0]["activations"] == 250
    with pytest.raises(InfeasibleError, match="activations 200 B: the plan with the smallest peak needs 250 B"):
        SolveBits(activations=200).run(noted(), ctx)
    with pytest.raises(UsageError, match="activation_terms"):
        SolveBits(activations=340).run(noted(), context())


def test_candidates_begin_with_the_optimum_and_end_with_the_uniform_plans() -> None:
    result = SolveBits(latency=3.2e-3).run(noted(), context())
    candidates = result.report.facts["candidates"]
    assert candidates[0] == bits_of(result)
    for uniform in ((8, 4), (4, 8), (4, 4)):
        assert dict.fromkeys(LAYERS, uniform) in candidates
    assert dict.fromkeys(LAYERS, (8, 8)) not in candidates
    assert len({tuple(plan.items()) for plan in candidates}) == len(candidates) >= 6
    losses = [row["loss"] for row in result.report.facts["predicted"]]
    assert losses[:4] == sorted(losses[:4])
    assert losses[4:] == sorted(losses[4:])
    assert all(row["latency"] <= 3.2e-3 for row in result.report.facts["predicted"])


def test_uniform_candidates_step_up_where_a_layer_does_not_offer_the_width() -> None:
    result = SolveBits().run(noted(stem={(8, 8): 1.0}), context(pins={"head": (4, 4)}))
    wanted = {"stem": (8, 8), "left": (4, 4), "right": (4, 4), "head": (4, 4)}
    assert wanted in result.report.facts["candidates"]


def test_pins() -> None:
    plan = bits_of(SolveBits().run(noted(), context(pins={".*": (4, 8), "st.m": (8, 4)})))
    assert plan == {"stem": (8, 4), "left": (4, 8), "right": (4, 8), "head": (4, 8)}


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"lift": (8, 8)}, "pin 'lift' matches no layer\n  hint: did you mean left?"),
        ({"[": (8, 8)}, "pin '[' is not a regular expression: unterminated character set at position 0"),
        (
            {"left": (8, 8), "right": (8, 4)},
            "'left' is pinned to w8a8 and 'right' to w8a4, but both read the same values and share their "
            "activation bits",
        ),
        (
            {"stem": (2, 8)},
            "target 'toy' does not support the precision of stem (w2a8)\n"
            "  hint: weights take 4, 8 bits, activations 4, 8",
        ),
    ],
)
@pytest.mark.parametrize("planner", [SolveBits(), UniformBits()])
def test_pins_that_do_not_fit(planner: SolveBits | UniformBits, pins: dict[str, Bits], message: str) -> None:
    with pytest.raises(UsageError) as error:
        planner.run(noted(), context(pins=pins))
    assert str(error.value) == message


def test_a_pin_to_something_not_offered() -> None:
    with pytest.raises(UsageError) as error:
        SolveBits().run(noted(stem={(8, 8): 1.0}), context(pins={"stem": (4, 4)}))
    assert str(error.value) == "'stem' is pinned to w4a4, which it does not offer\n  hint: it offers w8a8"


@pytest.mark.parametrize(
    ("limits", "data", "message"),
    [
        (
            {"latency": 1.5e-3}, {},
            "latency 1.5 ms: the fastest plan takes 2 ms\n"
            "  hint: raise the limit, or allow smaller bit widths",
        ),
        (
            {"latency": 5e-3}, {"fixed_seconds": 4.2e-3},
            "latency 5 ms: the fastest plan takes 6.2 ms\n"
            "  hint: raise the limit, or allow smaller bit widths",
        ),
        (
            {"latency": 1.9999e-3}, {},
            "latency 2 ms: the fastest plan takes 2 ms\n"
            "  hint: raise the limit, or allow smaller bit widths",
        ),
        (
            {"memory": 2499}, {"pins": {"head": (8, 8)}},
            "memory 2.44 KiB: the smallest plan takes 2500 B (2.44 KiB)\n  hint: raise the limit, or pin fewer layers",
        ),
        (
            {"latency": 1e-3, "memory": 1024}, {},
            "latency 1 ms: the fastest plan takes 2 ms; memory 1 KiB: the smallest plan takes 2000 B (1.95 KiB)\n"
            "  hint: raise the limits, or allow smaller bit widths",
        ),
    ],
)  # fmt: skip
def test_infeasible(limits: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(InfeasibleError) as error:
        SolveBits(**limits).run(noted(), context(**data))
    assert str(error.value) == message
    assert error.value.exit_code == 4


def test_limits_that_only_conflict_with_each_other() -> None:
    """4-bit weights are made slow here: a small plan is slow, a fast plan is large."""
    source = noted()
    costs = CostTable({(w, a): 1e-3 * (16 - w) / 8 for w, a in MENU}, {4: 500, 8: 1000}, "measured")
    notes = source.notes.with_table(COSTS, dict.fromkeys(LAYERS, costs))
    with pytest.raises(InfeasibleError) as error:
        SolveBits(latency=4.5e-3, memory=3072).run(source.with_notes(notes), context())
    assert error.value.message == (
        "latency 4.5 ms: the fastest plan that keeps memory 3 KiB takes 5 ms; "
        "memory 3 KiB: the smallest plan that keeps latency 4.5 ms takes 3500 B (3.42 KiB)"
    )


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_scores_that_are_not_numbers_are_refused(score: float) -> None:
    with pytest.raises(DataError) as error:
        SolveBits().run(noted(stem={(8, 8): 1.0, (4, 8): score}), context())
    assert error.value.message == f"the predicted loss of 'stem' at w4a8 is {score}"


def test_an_infinite_loss_means_impossible() -> None:
    row = dict.fromkeys(MENU, math.inf)
    assert bits_of(SolveBits().run(noted(stem=row | {(4, 4): 9.0}), context()))["stem"] == (4, 4)
    with pytest.raises(InfeasibleError, match="'stem' has no precision with both"):
        SolveBits().run(noted(stem=row), context())


def test_ties_without_a_common_width() -> None:
    with pytest.raises(InfeasibleError, match="offer no activation width in common"):
        SolveBits(memory=4000).run(noted(left={(8, 8): 1.0}, right={(8, 4): 1.0}), context())


def test_uniform_bits() -> None:
    plan = bits_of(UniformBits(w=4).run(graph(), context(pins={"left": (8, 4)})))
    assert plan == {"stem": (4, 8), "left": (8, 4), "right": (4, 4), "head": (4, 8)}
    with pytest.raises(UsageError, match=r"does not support the precision of stem \(w3a8\), left \(w3a8\)"):
        UniformBits(w=3).run(graph(), context())


def write(tmp_path: Path, data: object) -> str:
    path = tmp_path / "plan.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(path)


def test_plan_from_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"bits": {"head": [8, 4], "stem": [8, 8], "left": [4, 4], "right": [8, 4]}})
    plan = bits_of(PlanFromFile(path).run(graph(), context()))
    assert list(plan.items()) == [("stem", (8, 8)), ("left", (4, 4)), ("right", (8, 4)), ("head", (8, 4))]


ALL = {layer: [8, 8] for layer in LAYERS}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{",
            "the plan {path} is not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        ([], 'the plan {path} has no object "bits"'),
        (
            {"bits": ALL | {"stem": 8, "head": [8, "8"]}},
            "the plan {path} has no pair of integers for 'stem' (8), 'head' ([8, '8'])",
        ),
        (
            {"bits": {"steam": [8, 8], "left": [8, 8], "right": [8, 8]}},
            "the plan {path} names unknown layers: 'steam' and lacks the layers: 'stem', 'head'",
        ),
        (
            {"bits": ALL | {"left": [8, 4]}},
            "'left' is planned to w8a4 and 'right' to w8a8, but both read the same values and share their "
            "activation bits",
        ),
        ({"bits": ALL | {"stem": [1, 8]}}, "target 'toy' does not support the precision of stem (w1a8)"),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit(tmp_path: Path, data: object, message: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(UsageError) as error:
        PlanFromFile(path).run(graph(), context())
    assert error.value.message == message.replace("{path}", path)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the plan .*absent.json: No such file"):
        PlanFromFile(str(tmp_path / "absent.json")).run(graph(), context())
    with pytest.raises(UsageError, match="needs the option path"):
        PlanFromFile().run(graph(), context())
