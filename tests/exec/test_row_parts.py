"""Rows shared between threads: all of them, once, each part whole."""

from __future__ import annotations

import threading

import pytest
import torch

from qcompile.exec.row_parts import LEAST, over_rows


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (LEAST, 2), (1000, 1), (1000, 3), (5000, 2)])
def test_every_row_is_in_one_part(rows: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    parts: list[slice] = []
    over_rows(rows, 700, parts.append)
    assert sorted(i for part in parts for i in range(part.start, part.stop)) == list(range(rows))
    assert all(part.stop - part.start <= 700 for part in parts)


def test_parts_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2, timeout=60)
    over_rows(2 * LEAST, 2 * LEAST, lambda part: both.wait() and None)


def test_what_fails_in_a_part_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fail(part: slice) -> None:
        if part.start:
            raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        over_rows(2 * LEAST, 2 * LEAST, fail)
