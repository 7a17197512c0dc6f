"""Prediction: which plans are tried, how errors are counted, and what is printed."""

from __future__ import annotations

import pytest

from benchmarks.prediction import UNIFORM, Prediction, format_predictions, random_plans, summary, to_json
from qcompile.target.model import Target

ROWS = [
    Prediction("net", UNIFORM, 1.0, 1.25, 1.25, 1.3),
    Prediction("net", "random 0", 0.8, 1.25, 1.0, 1.1),
    Prediction("net", "random 1", 1.2, 1.25, 1.0, 1.1),
]


def test_errors_before_and_after_correction() -> None:
    assert ROWS[1].errors == pytest.approx((-0.2, 0.0))
    # What the correction was taken from says nothing about it.
    found = summary(ROWS)
    assert (found["plans"], found["before"], found["after"]) == (2, pytest.approx(0.2), pytest.approx(0.25))
    assert summary(ROWS[:1]) == {"plans": 0, "before": 0.0, "after": 0.0}


def test_the_table_shows_signed_errors_and_the_means() -> None:
    text = format_predictions(ROWS)
    assert "mean absolute error over 2 plans: 20.0 %, corrected 25.0 %" in text
    assert "| -20.0 | +0.0 " in text
    assert to_json({"cpus": 2}, ROWS)["summary"]["plans"] == 2


def test_plans_differ_and_are_the_same_for_one_seed() -> None:
    target = Target("t", "", "", weight_bits=(2, 4, 8), act_bits=(4, 8))
    layers = [f"layer{i}" for i in range(60)]
    plans = random_plans(layers, target, 4, seed=1)
    assert list(plans)[:2] == [UNIFORM, "uniform w2a4"]
    assert len({tuple(plan.items()) for plan in plans.values()}) == 6
    assert plans == random_plans(layers, target, 4, seed=1)
    for plan in plans.values():
        assert set(plan) == set(layers)
        assert all(w in target.weight_bits and a in target.act_bits for w, a in plan.values())
        assert len({a for _, a in plan.values()}) == 1
