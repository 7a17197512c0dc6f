"""What counts as a kept floor; and, with the data pack, floors of a network on samples nothing has looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.floors import Row, most_evaluations, rows_of
from benchmarks.pack import load_pack

PACK = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_evaluations_that_are_allowed() -> None:
    assert [most_evaluations(plans) for plans in (1, 7, 8, 24)] == [4, 6, 7, 8]


def test_a_floor_is_kept_by_judges_by_the_bound_and_by_the_number_of_plans() -> None:
    row = Row("net", 0.01, 0.008, 1000, 0.02, 0.95, 0.015, 0.004, 1000, [6], [8], 100, 1.0)
    assert row.kept
    for change in ({"judged": 0.011}, {"unseen": 0.021}, {"evaluations": [9]}):
        assert not replace(row, **change).kept


@pytest.mark.slow
@pytest.mark.skipif(not PACK.is_dir(), reason="the data pack is not beside the repository")
@pytest.mark.parametrize("network", ["mlperf_tiny_dscnn_kws", "mlperf_tiny_resnet8_cifar10"])
def test_floors_of_trained_networks(network: str) -> None:
    for row in rows_of(network, load_pack(PACK), [0.01]):
        assert row.kept, row
