"""The accuracy table's own arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import Accuracy, budget, divergence, measured_before, paired_error


def test_only_samples_that_differ_count() -> None:
    """Planted: 100 samples, 6 lost and 2 gained: the variance of the mean of −1, 0, 1 with these counts."""
    one = np.ones(100, bool)
    one[:2] = False
    other = np.ones(100, bool)
    other[2:8] = False
    differences = other.astype(int) - one.astype(int)
    assert paired_error(one, other) == pytest.approx(differences.std() / math.sqrt(100))
    assert paired_error(one, one) == 0.0


def test_budgets_are_shares_of_the_8_bit_bytes() -> None:
    assert budget("mixed50", 1001) == 500
    assert budget("mixed40", 1000) == 400


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    row = Accuracy("net", "w4a8", "gptq", 10, 0.9, 0.8, 0.1, 0.85, 0.02, 100, 1.5)
    file = tmp_path / "rows.json"
    assert measured_before(None) == measured_before(file) == []
    file.write_text(json.dumps([asdict(row)]))
    assert measured_before(file) == [row]


def test_divergence_of_scores_and_of_probabilities() -> None:
    """Of (¼, ¾) and (½, ½), by hand; what is added to all scores of a sample changes nothing."""
    real, found = np.log([[0.25, 0.75]]) + 5, np.log([[0.5, 0.5]]) - 3
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(real, found) == pytest.approx(wanted)
    assert divergence(np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]])) == pytest.approx(wanted)
    assert divergence(real, real) == 0.0
