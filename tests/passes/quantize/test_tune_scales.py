"""tune-scales: the network's answers come closer, integers stay, and where it does not pay nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.plan.simulate import Simulator
from passes.quantize.round_weights import RoundWeights
from passes.quantize.tune_scales import TuneScales
from passes.structure import Structure
from qcompile.compiler import Budgets, Compiler
from qcompile.errors import PassContractError
from qcompile.ir import Array, Graph
from qcompile.job import Job, silent
from qcompile.pm.base import PassContext, PassResult
from qcompile.pm.facts import BITS, CANDIDATES, RANGES, ROUNDED, BitChoice, Candidates
from qcompile.pm.work import WorkCache
from qcompile.target.model import Target
from targets.reference.backend import ReferenceBackend
from tests.passes.analysis.estimator_nets import calibrated, conv_net

TARGET = Target("none", "", "")
DIGITS = Path(__file__).parents[3] / "models" / "digits_resnet" / "digits_resnet.onnx"
X = np.random.default_rng(8).normal(size=(96, 2, 6, 6)).astype(np.float32)
OTHER = np.random.default_rng(9).normal(size=(400, 2, 6, 6)).astype(np.float32)
ALWAYS = TuneScales(least=0.0, epochs=120)


def stream() -> Iterator[dict[str, Array]]:
    yield from ({"x": X[i : i + 20]} for i in range(0, len(X), 20))


def context(folder: Path | None = None) -> PassContext:
    return PassContext(TARGET, calibration=stream, work=None if folder is None else WorkCache(folder))


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Weights of 2 bits, rounded to nearest so that there is something to take back."""
    base = calibrated()
    plan = {layer: BitChoice(2, 8) for layer in Structure(base).layers}
    base = base.with_notes(base.notes.with_table(BITS, plan))
    return RoundWeights("gptq").run(base, context()).graph


def loss(graph: Graph) -> float:
    """Of the rounded weights on samples that nothing has seen."""
    table = {layer: Candidates({r.bits: r}) for layer, r in graph.notes[ROUNDED].items()}
    noted = graph.with_notes(graph.notes.with_table(CANDIDATES, table))
    return Simulator(noted, graph.notes[RANGES], [{"x": OTHER}]).loss(graph.notes[BITS])


def same(one: PassResult, graph: Graph) -> bool:
    return one.graph.notes[ROUNDED] == graph.notes[ROUNDED]


def test_answers_come_closer_and_integers_stay(graph: Graph) -> None:
    result = ALWAYS.run(graph, context())
    facts = result.report.facts
    assert facts["samples"] == 96
    assert facts["after"] < 0.9 * facts["before"]
    assert loss(result.graph) < 0.95 * loss(graph)
    assert "nats on 96 calibration samples" in result.report.done[0]
    for layer, given in graph.notes[ROUNDED].items():
        found = result.graph.notes[ROUNDED][layer]
        assert found.bits == given.bits
        np.testing.assert_array_equal(found.q, given.q)
        assert (found.scale > 0).all()
        assert found.scale.dtype == found.b.dtype == np.float64
        assert (found.scale != given.scale).any()


@pytest.mark.parametrize(
    ("pass_", "reason"),
    [
        (TuneScales(least=1e3), "too little"),
        (TuneScales(least=0.0, fewest=97), "too few samples"),
        (TuneScales(least=0.0, teramacs=1e-9), "too long"),
        (TuneScales(least=0.0, epochs=0), "too little"),
    ],
)
def test_left_as_it_is(graph: Graph, pass_: TuneScales, reason: str) -> None:
    result = pass_.run(graph, context())
    assert same(result, graph)
    assert reason in str(result.report.facts["left"])
    assert result.report.done == ()


def test_the_work_is_limited_by_fewer_samples(graph: Graph) -> None:
    from passes.analysis.effort import macs

    pass_ = replace(ALWAYS, teramacs=3 * 120 * 80.5 * macs(graph) * 1e-12)
    assert pass_.run(graph, context()).report.facts["samples"] == 80


def test_nothing_rounded_nothing_tuned() -> None:
    base = calibrated()
    base = base.with_notes(base.notes.with_table(ROUNDED, {}))
    result = ALWAYS.run(base, context())
    assert same(result, base)
    assert "no weights" in str(result.report.facts["left"])
    with pytest.raises(PassContractError, match="calibration"):
        ALWAYS.run(base, PassContext(TARGET))


def test_found_once_found_again(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ALWAYS.run(graph, context(tmp_path))
    other = graph.with_notes(
        graph.notes.with_table(ROUNDED, {layer: replace(r, b=r.b + 0.01) for layer, r in graph.notes[ROUNDED].items()})
    )
    changed = ALWAYS.run(other, context(tmp_path)).report.facts
    assert changed["before"] != first.report.facts["before"]
    monkeypatch.setattr("passes.quantize.tune_scales.tune_scales", None)
    again = ALWAYS.run(graph, context(tmp_path))
    assert again.report == first.report
    for layer, found in first.graph.notes[ROUNDED].items():
        np.testing.assert_array_equal(again.graph.notes[ROUNDED][layer].scale, found.scale)
        np.testing.assert_array_equal(again.graph.notes[ROUNDED][layer].b, found.b)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"tune": False}, False),
        ({"rounding": "nearest"}, False),
        ({"rounding": "adaround"}, False),
        ({"rounding": "gptq"}, True),
    ],
)
def test_it_follows_gptq_unless_told_not_to(options: dict[str, Any], expected: bool) -> None:
    compiler = Compiler(conv_net(), TARGET, ReferenceBackend(TARGET), stream, stream, None, **options)
    compiler.prepare(analyse=False)
    compiler.uniform((4, 8))
    compiler.lower()
    assert ("tune-scales" in compiler.reports) == expected
    assert "round-weights" in compiler.reports


@pytest.mark.parametrize("given", [True, False])
def test_made_up_samples_teach_nothing(given: bool) -> None:
    """Without calibration data inputs are made up: answers to those are not tuned to."""
    x = np.random.default_rng(0).uniform(size=(70, 1, 16, 16)).astype(np.float32)
    job = Job(
        model=DIGITS, target="reference", budgets=Budgets(), uniform=None, plan=None,
        calib={"input": x} if given else None, eval_data=None, out=None, example=None, shapes=None, pins={},
        weight_bits=None, act_bits=None, passes=None, dump=None, samples=8, seed=0, threads=1, overwrite=True,
        measure=False, progress=silent,
    )  # fmt: skip
    assert job.open()[1].tune == given
