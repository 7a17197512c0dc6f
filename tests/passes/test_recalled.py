"""Passes that keep what they found: a second run computes nothing, and another question is asked anew."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from passes.analysis.calibrate_ranges import CalibrateRanges
from passes.analysis.estimate_cost import representatives, searched_scales
from passes.plan.select_plan import SelectPlan
from passes.quantize.equalize_layers import EqualizeLayers
from passes.quantize.round_candidates import RoundCandidates
from passes.quantize.round_weights import RoundWeights
from passes.structure import Structure
from qcompile.exec.torch_exec import TorchGraph
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import Pass, PassContext
from qcompile.pm.facts import BITS, RANGES, BitChoice
from qcompile.pm.notes_json import notes_to_json
from qcompile.pm.work import WorkCache, recalled
from qcompile.semantics.grids import weight_scales
from tests.passes.analysis.estimator_nets import DATA, calibrated, context, conv_net


def planned(graph: Graph, w: int, a: int = 8) -> Graph:
    plan = {layer: BitChoice(w, a) for layer in Structure(graph).layers}
    return graph.with_notes(graph.notes.with_table(BITS, plan))


def ctx_of(folder: Path | None) -> PassContext:
    ctx = context(folder)
    plans = [{layer: BitChoice(w, 8) for layer in ("c1", "c2", "fc")} for w in (3, 4)]
    return replace(ctx, data={"candidates": plans})


def other_stream() -> Iterator[dict[str, Array]]:
    yield {"x": DATA[::-1] * 1.5}


CASES = {
    "ranges": (CalibrateRanges(), conv_net),
    "channels": (EqualizeLayers(), conv_net),
    "integers": (RoundWeights(), lambda: planned(calibrated(), 3)),
    "discquant": (RoundWeights(method="discquant", epochs=1), lambda: planned(calibrated(), 3)),
    "plans": (SelectPlan(), lambda: RoundCandidates().run(calibrated(), context()).graph),
}


def found(pass_: Pass, graph: Graph, ctx: PassContext) -> tuple[str, str, object]:
    result = pass_.run(graph, ctx)
    notes = json.dumps(notes_to_json(result.graph.notes, pass_.provides), sort_keys=True)
    return result.graph.content_hash, notes, result.report.facts


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_computed_twice(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_, make = CASES[case]
    graph = make()
    without = found(pass_, graph, ctx_of(None))
    assert found(pass_, graph, ctx_of(tmp_path)) == without

    def run(*_: object, **__: object) -> None:
        raise AssertionError("the network was run again")

    with monkeypatch.context() as patch:
        patch.setattr(TorchGraph, "run", run)
        patch.setattr("passes.quantize.round_weights.PairedSteps", run)
        assert found(pass_, graph, ctx_of(tmp_path)) == without
        changed = replace(ctx_of(tmp_path), calibration=other_stream, holdout=other_stream)
        with pytest.raises(AssertionError, match="run again"):
            pass_.run(graph, changed)


def test_integers_belong_to_one_plan_and_one_method(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    others = [
        (RoundWeights(), planned(calibrated(), 3), ctx),
        (RoundWeights(), planned(calibrated(), 4), ctx),
        (RoundWeights(), planned(calibrated(), 3, a=4), ctx),
        (RoundWeights(method="adaround"), planned(calibrated(), 3), ctx),
        (RoundWeights(positions=2), planned(calibrated(), 3), ctx),
        (RoundWeights(positions=2), planned(calibrated(), 3), replace(ctx, seed=1)),
    ]
    seen = []
    for pass_, graph, own in others:
        seen.append(found(pass_, graph, own)[1])
        assert seen[-1] == found(pass_, graph, replace(own, work=None))[1]
    assert len(set(seen)) == len(others), "each of them rounds differently"


def test_recalled_asks_for_no_key_without_a_store(tmp_path: Path) -> None:
    def key() -> str:
        raise AssertionError

    assert recalled(None, key, lambda: {"x": np.ones(2)})["x"].tolist() == [1, 1]
    work, runs = WorkCache(tmp_path), []

    def compute() -> dict[str, Array]:
        runs.append(1)
        return {"x": np.arange(3), "facts": np.array("text")}

    first, second = (recalled(work, lambda: "key", compute) for _ in range(2))
    assert len(runs) == 1
    assert first["x"].tolist() == second["x"].tolist() == [0, 1, 2]
    assert str(second["facts"]) == "text"


def test_weight_scales_are_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ctx = conv_net(), context(tmp_path)
    found = searched_scales(graph, ctx)
    widths = set(representatives(ctx.target.weight_bits, ctx.target.weight_steps).values())
    assert set(found) == {(layer, bits) for layer in ("c1", "c2", "fc") for bits in widths}
    for (layer, bits), scale in found.items():
        np.testing.assert_array_equal(scale, weight_scales(graph.const(graph.by_name[layer], "w"), bits))
    monkeypatch.setattr("passes.analysis.estimate_cost.weight_scales", None)
    again = searched_scales(graph, ctx)
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[key], found[key]) for key in found)


@pytest.mark.parametrize("pass_", [CalibrateRanges(), EqualizeLayers()], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["samples", "file", "allow_pickle"])
def test_a_value_may_have_any_name(pass_: Pass, name: str, tmp_path: Path) -> None:
    """Names that the store or NumPy's `savez` uses for something else."""
    b = GraphBuilder("net", "float")
    h = b.add("conv2d", [b.input("x", TensorType((-1, 2, 6, 6), "f32"))], name="c1", consts={"w": DATA[:4, :, :3, :3]})
    h = b.add("clip", [h], name=name, attrs={"lo": 0.0})
    b.output("y", b.add("conv2d", [h], name="c2", consts={"w": np.tile(DATA[:3, :, :3, :3], (1, 2, 1, 1))}))
    graph = b.build()
    wanted = found(pass_, graph, ctx_of(None))
    assert found(pass_, graph, ctx_of(tmp_path)) == found(pass_, graph, ctx_of(tmp_path)) == wanted
    if isinstance(pass_, CalibrateRanges):
        assert set(pass_.run(graph, ctx_of(tmp_path)).graph.notes[RANGES]) == {"x", name, "c2"}
