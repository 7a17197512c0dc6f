"""Notes to JSON and back."""

from __future__ import annotations

import json
import math

import pytest

from qcompile.errors import UsageError
from qcompile.ir import Notes
from qcompile.pm.facts import BITS, COSTS, LOSS, RANGES, BitChoice, CostTable, LossTable, Range
from qcompile.pm.notes_json import FACTS, notes_from_json, notes_to_json


def notes() -> Notes:
    return (
        Notes()
        .with_table(RANGES, {"x": Range(-1.5, 2.0, {4: (-1.0, 1.0), 8: (-1.5, 2.0)}, {4: 0.1, 8: 1e-5}, 64)})
        .with_table(LOSS, {"fc": LossTable({(4, 8): math.inf, (8, 8): 0.1 + 0.2})})
        .with_table(COSTS, {"fc": CostTable({(8, 8): 1e-6}, {8: 100}, "measured")})
        .with_table(BITS, {"fc": BitChoice(8, 4)})
    )


def test_round_trip_through_text() -> None:
    text = json.dumps(notes_to_json(notes()), allow_nan=False)
    again = notes_from_json(json.loads(text))
    assert again.keys == notes().keys
    for key in again.keys:
        assert again[key] == notes()[key]


def test_some_keys_only() -> None:
    assert notes_to_json(notes(), [BITS]) == {"bits": {"fc": {"w": 8, "a": 4}}}


def test_all_facts_are_known() -> None:
    assert {RANGES, LOSS, COSTS, BITS} <= set(FACTS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"bit": {}}, "unknown note 'bit'"),
        ({"bits": {"fc": {"w": 8}}}, "note 'bits' of 'fc' cannot be read: .*BitChoice has the fields w, a"),
        ({"bits": {"fc": {"w": 8, "a": "4"}}}, "note 'bits' of 'fc' cannot be read: .*'4' is not of type"),
        ({"loss": {"fc": {"loss": [[[4], 1.0]]}}}, "note 'loss' of 'fc' cannot be read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        notes_from_json(data)
