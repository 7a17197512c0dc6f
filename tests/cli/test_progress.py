"""Bars and stage lines: only what takes a while is drawn, and only where somebody looks."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from qcompile.cli import progress
from qcompile.cli.progress import Stages


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def text(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_bars_appear_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    target = console(True)
    stages = Stages(target, live=True, lines=True)
    stages("quick", 0, 0)
    stages("slow", 0, 0)
    stages("slow", 1, 3)
    time.sleep(0.4)
    stages("slow", 2, 3)
    time.sleep(0.2)
    stages.close()
    shown = text(target)
    assert "2/3" in shown
    assert "0/?" not in shown
    assert shown.count("quick") == 1  # its line, no bar


def test_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    target = console(False)
    stages = Stages(target, live=False, lines=True)
    stages("measure", 0, 0)
    stages("kernels", 1, 2)
    stages.note("[126/126] kernels")
    stages.close()
    assert text(target) == f"measure     {'[126/126] kernels':<52}     0.0 s\n"


def test_a_stage_that_fails_has_no_line() -> None:
    target = console(False)
    stages = Stages(target, live=False, lines=True)
    stages("build", 0, 0)
    stages.abandon()
    stages.close()
    assert text(target) == ""
