"""Executed instructions are counted, not guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.instructions import Counted, Shape, format_counts


def test_no_kernel_executes_fewer_instructions_than_dot_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [tool for tool in ("qemu-aarch64", "aarch64-linux-gnu-gcc", "cc") if shutil.which(tool) is None]:
        pytest.skip(f"not here: {', '.join(missing)}")
    monkeypatch.setattr(instructions, "SHAPES", (Shape(32, 16, 8, 3),))
    out = tmp_path / "counts.json"
    assert instructions.main(["--target", "aarch64-dotprod", "--bits", "w8a8,w4a6", "--json", str(out)]) == 0
    found, winograd, _ = json.loads(out.read_text())
    assert (found["variant"], found["macs"]) == ("sdot-shifted", 8 * 8 * 16 * 32 * 9)
    # One `sdot` is 16 multiply-adds; a kernel that took three times as many instructions would be broken.
    assert found["macs"] / 16 < found["instructions"] < 3 * found["macs"] / 16
    assert winograd["variant"] == "winograd-2"
    assert winograd["macs"] / 16 / 2.25 < winograd["instructions"] < 3 * winograd["macs"] / 16
    assert "3x3  8x8x32 -> 16" in capsys.readouterr().out


def test_the_table_compares_with_the_published_loop() -> None:
    text = format_counts("aarch64-dotprod", [Counted("1x1  4x4x16 -> 16", "w8a8", "sdot", 1024, 156)])
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]][3:] == ["0.00", "0.1523", "2.00"]
    assert "XNNPACK igemm 4x16c4" in text
