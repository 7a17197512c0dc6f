"""Plans under an accuracy floor, the front, and answers to "why", on a network that is shipped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.plan import select_plan
from qcompile import api, job, plotting
from qcompile.errors import AccuracyError, DataError, UsageError
from qcompile.target.backend import Measurement

MODEL = Path(__file__).parents[2] / "models" / "digits_resnet"
FEW = {"bits": (3, 4, 8), "act_bits": (8,), "measure": False, "sensitivity": "trace"}
"""Few choices, and an estimator that takes seconds."""


def eval_data() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(MODEL / "eval.npz") as file:
        return dict(file)


def compiled(out: Path, **options: Any) -> api.CompileResult:
    return api.compile(
        MODEL / "digits_resnet.onnx", calib=MODEL / "calib.npz", out=out / "m.qc", overwrite=True, **{**FEW, **options}
    )  # fmt: skip


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory) -> api.CompileResult:
    return compiled(tmp_path_factory.mktemp("floor"), max_drop="1%", holdout=eval_data())


def test_the_floor_is_kept_by_what_was_built_in_few_evaluations(floored: api.CompileResult) -> None:
    accuracy = floored.accuracy
    assert accuracy["metric"] == "top-1"
    assert accuracy["samples"] == 360
    assert accuracy["drop"] <= 0.01
    assert accuracy["built"]["drop"] <= 0.01
    assert accuracy["drop"] < accuracy["drop_below"] < 0.05
    assert [step["minimized"] for step in accuracy["steps"]] == ["memory", "latency"]
    for step in accuracy["steps"]:
        assert step["evaluations"] <= math.ceil(math.log2(step["plans"] + 1)) + 3
    assert floored.weight_bytes < 0.5 * 36_000
    outputs = floored.artifact.run({"input": eval_data()["input"]})
    top1 = float((next(iter(outputs.values())).argmax(axis=1) == eval_data()["labels"]).mean())
    assert accuracy["built"]["value"] == pytest.approx(top1)


def test_the_plan_records_how_it_came_about(floored: api.CompileResult) -> None:
    plan = floored.artifact.plan
    assert plan["prediction"]["sensitivity"] == "trace"
    assert plan["accuracy"]["max_drop"] == 0.01
    assert floored.to_json()["accuracy"]["steps"][0]["evaluations"] > 0
    found = api.explain(floored.artifact, "fc")
    assert found["accuracy"]["metric"] == "top-1"
    assert {row["axis"] for row in found["marginal"]} == {"memory", "latency"}
    assert all(row["saved"] >= 0 for row in found["marginal"])


def test_without_labels_agreement_is_measured(tmp_path: Path) -> None:
    data = eval_data()
    result = compiled(tmp_path, max_drop=0.02, minimize="memory", holdout={"input": data["input"]})
    assert result.accuracy["metric"] == "agreement"
    assert result.accuracy["built"]["value"] >= 0.98
    assert [step["minimized"] for step in result.accuracy["steps"]] == ["memory"]


def test_where_no_plan_keeps_the_floor(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match=r"even w2a4 loses .* on 360 held-out samples") as caught:
        compiled(tmp_path, max_drop="0%", holdout=eval_data(), bits=(2,), act_bits=(4,))
    assert caught.value.exit_code == 5
    assert not (tmp_path / "m.qc").exists()


def test_a_built_network_that_misses_the_floor_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile import job

    def upside_down(artifact: Any, samples: Any) -> dict[str, Any]:
        parts = [artifact.run({"input": batch["input"]}) for batch in samples()]
        return {name: -np.concatenate([part[name] for part in parts]) for name in parts[0]}

    monkeypatch.setattr(job, "_outputs", upside_down)
    monkeypatch.setattr(job, "ACCURACY_ROUNDS", 1)
    with pytest.raises(AccuracyError, match="the built network loses") as caught:
        compiled(tmp_path, max_drop="1%", minimize="memory", holdout=eval_data())
    assert str(tmp_path / "m.qc.rejected") in str(caught.value)
    assert (tmp_path / "m.qc.rejected" / "manifest.json").exists()
    assert not (tmp_path / "m.qc").exists()


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    data = eval_data()
    data["labels"] = np.zeros((len(data["input"]), 2), np.int64)
    with pytest.raises((DataError, UsageError)):
        compiled(tmp_path, max_drop="1%", holdout=data)


def test_protected_layers_and_other_metrics(tmp_path: Path) -> None:
    result = compiled(tmp_path, memory="16KiB", protect=("stem.*", "fc"), metrics={"block1.*": "sqnr"})
    assert result.bits["stem.0"] == result.bits["fc"] == (8, 8)
    groups = result.artifact.plan["prediction"]["metrics"]
    assert [(g["estimator"], len(g["layers"])) for g in groups] == [("sqnr", 2)]
    assert result.artifact.plan["protect"] == ["stem.*", "fc"]
    with pytest.raises(UsageError, match="--protect 'nothing' matches no layer"):
        compiled(tmp_path, memory="14KiB", protect=("nothing",))


def test_the_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"calib": MODEL / "calib.npz", "holdout": eval_data(), "points": 4, "out": tmp_path / "front", **FEW}
    found = api.sweep(MODEL / "digits_resnet.onnx", **options)
    sizes = [row["bytes"] for row in found.rows]
    assert len(sizes) == 4
    assert sizes == sorted(sizes)
    assert all(row["bytes"] <= row["budget"] for row in found.rows)
    predicted = [row["predicted_loss"] for row in found.rows]
    assert predicted == sorted(predicted, reverse=True)
    assert found.rows[-1]["held_out_loss"] < found.rows[0]["held_out_loss"]
    assert found.rows[-1]["accuracy"]["samples"] == 360
    stored = json.loads((tmp_path / "front" / "front.json").read_text())
    assert stored["front"][0]["bits"] == found.rows[0]["bits"]
    assert len((tmp_path / "front" / "front.csv").read_text().splitlines()) == 5
    if plotting.can_plot():
        assert "</svg>" in (tmp_path / "front" / "front.svg").read_text()
    monkeypatch.setattr(plotting, "can_plot", lambda: False)
    found.files, found.warnings = [], []
    found.write(tmp_path / "plain")
    assert [path.name for path in found.files] == ["front.json", "front.csv"]
    assert "matplotlib" in found.warnings[0]
    assert (tmp_path / "plain" / "front.csv").read_bytes() == (tmp_path / "front" / "front.csv").read_bytes()


def test_predictions_reach_the_choice_among_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def choose(measured: Any, uniform: Any, predicted: Any) -> int:
        asked.append(predicted)
        return int(np.argmin(predicted))

    monkeypatch.setattr(select_plan, "choose", choose)
    monkeypatch.setattr(select_plan, "TRUSTED", -1.0)
    plan = compiled(tmp_path, memory="18KiB").artifact.plan
    predicted = [row["predicted"]["loss"] for row in plan["candidates"]]
    assert asked == [predicted]
    assert len(set(predicted)) > 1
    assert [row["chosen"] for row in plan["candidates"]] == [loss == min(predicted) for loss in predicted]


def test_fronts_that_cannot_be(tmp_path: Path) -> None:
    from qcompile.errors import InfeasibleError

    options = {"calib": MODEL / "calib.npz", **FEW}
    with pytest.raises(UsageError, match="at least 2 points"):
        api.sweep(MODEL / "digits_resnet.onnx", points=1, **options)
    with pytest.raises(UsageError, match="does not rise"):
        api.sweep(MODEL / "digits_resnet.onnx", span="2KiB:1KiB", **options)
    with pytest.raises(UsageError, match="goes along memory or latency"):
        api.sweep(MODEL / "digits_resnet.onnx", axis="speed", **options)
    with pytest.raises(InfeasibleError, match="no plan keeps any memory"):
        api.sweep(MODEL / "digits_resnet.onnx", span="1KiB:2KiB", points=2, **options)


@pytest.mark.parametrize(("now", "said"), [(3.0, 1), (0.5, 0)])
def test_a_budget_missed_at_this_moment_is_said(
    now: float, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are timed beside uniform 8 bits; a stopwatch may say something else, and then so do we."""
    monkeypatch.setattr(job, "time_executable", lambda executable, threads, limit: Measurement(now, now, 1, threads))
    result = compiled(tmp_path, latency="1s", measure=True)
    assert result.artifact.measurements()["now_ms"] == 1e3 * now
    assert len([text for text in result.warnings if "at this moment" in text]) == said
