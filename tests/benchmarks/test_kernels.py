"""The table of an artifact's kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import kernels
from benchmarks.kernels import Timed, format_kernels, time_variants
from qcompile.target.backend import Measurement


def test_every_kernel_of_an_artifact_is_timed(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.json"
    assert kernels.main([str(digits), "--top", "3", "--variants", "--json", str(out)]) == 0
    read = json.loads(out.read_text())
    timed = read["kernels"]
    assert [k["seconds"] for k in timed] == sorted((k["seconds"] for k in timed), reverse=True)
    # stem 16·9·256, block1 2·16·16·9·256, block2 (16·9 + 32·9 + 16)·32·64, block3 2·32·32·9·64, fc 320
    assert sum(k["macs"] for k in timed) == 36864 + 1179648 + 917504 + 1179648 + 320
    assert {"3x3 conv2d", "3x3/2 conv2d", "1x1/2 conv2d", "linear"} <= {k["kind"] for k in timed}
    assert "16x16x16 -> 16x16x16, 1 more read" in {k["shapes"] for k in timed}
    shown = capsys.readouterr().out
    assert "sum of kernels" in shown
    # Behind everything else, the slowest three in every implementation; none has no figure at all.
    head, _, *rows = [line.split("|")[1:-1] for line in shown.rstrip().split("\n")[-5:]]
    assert [cell.strip() for cell in head[:3]] == ["kernel", "kind", "shapes"]
    assert [row[0].strip() for row in rows] == [t["name"] for t in timed[:3]]
    assert all(any(float(cell) > 0 for cell in row[3:] if cell.strip() != "-") for row in rows)


@dataclass(frozen=True)
class FakeKernel:
    name: str
    variant: str = ""


SECONDS = {("a", "plain"): 3e-6, ("a", "quick"): 1e-6, ("b", "quick"): 2e-6}


class FakeBackend:
    """Each implementation of each kernel takes a time of its own."""

    def variants(self, kernel: FakeKernel, program: Any) -> list[str]:
        return [variant for name, variant in SECONDS if name == kernel.name]

    def measure(self, works: Sequence[tuple[FakeKernel, Any]], threads: int) -> list[Measurement]:
        return [Measurement(SECONDS[k.name, k.variant], 1.0, 1, threads) for k, _ in works]


def test_every_implementation_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    program = SimpleNamespace(kernels=[FakeKernel("a"), FakeKernel("b"), FakeKernel("not listed")])
    monkeypatch.setattr("qcompile.verification.lower_again", lambda artifact: program)
    listed = [Timed(name, "3x3 conv2d", "8x8 -> 8x8", "quick", 1e-6, 1) for name in ("b", "a")]
    shown = time_variants(SimpleNamespace(backend=FakeBackend()), 1, listed)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.split("\n")]
    assert cells[0][3:] == ["quick", "plain"]
    assert [(row[0], *row[3:]) for row in cells[2:]] == [("b", "2.0", "-"), ("a", "1.0", "3.0")]


def test_totals_are_by_kind_and_variant() -> None:
    timed = [
        Timed("a", "3x3 conv2d", "8x8 -> 8x8", "vnni", 3e-6, 300_000),
        Timed("b", "3x3 conv2d", "8x8 -> 8x8", "vnni", 2e-6, 200_000),
        Timed("c", "add", "8x8 -> 8x8, 1 more read", "generic", 5e-6, 0),
    ]
    slowest, summary, sums = format_kernels(timed, 1, 400.0, 11e-6).split("\n\n")
    assert len(slowest.splitlines()) == 3
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in summary.splitlines()}
    assert cells["3x3 conv2d"] == ["vnni", "5.0", "50.0 %", "200", "50 %", "2"]
    assert cells["add"] == ["generic", "5.0", "50.0 %", "-", "-", "1"]
    assert sums == "sum of kernels 0.010 ms, end to end 0.011 ms, peak 400 GOPS a core"
