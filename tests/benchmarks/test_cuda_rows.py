"""The benchmark for GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cuda
from qcompile.errors import DeviceError
from qcompile.pm.registry import gpu_features
from qcompile.target.table import read_costs

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from cuda_host import compile_driver, install, needs_gcc


@pytest.mark.skipif(bool(gpu_features()), reason="this machine has a GPU")
def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main([]) == DeviceError.exit_code
    assert "no NVIDIA driver" in capsys.readouterr().err


def test_rounds_are_interleaved_and_ratios_taken_within_them() -> None:
    asked: list[str] = []

    def timer(name: str, seconds: list[float]) -> cuda.Timer:
        def timed(launches: int) -> float:
            asked.append(name)
            return seconds.pop(0) * launches

        return timed

    times = cuda.interleaved({"a": timer("a", [1, 4, 2]), cuda.PEER: timer("p", [2, 8, 2])}, 3, 10)
    assert asked == ["a", "p", "p", "a", "a", "p"]
    first, peer = cuda.rows_of("net", 1, times, cuda.PEER, {"a": 11.0})
    assert first.seconds == 20 and first.relative == 0.5 and peer.relative == 1.0
    shown = cuda.format_rows([first, peer])
    assert "-45.0 %" in shown and "0.500" in shown


@needs_gcc
def test_whole_run_on_a_fake_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network and a product go through; the figures are the fake clock's."""
    fake = install(monkeypatch, compile_driver(tmp_path))
    fake.device(1, 80)
    monkeypatch.setattr(cuda, "artifacts_of", lambda *a: {})
    arguments = ["--networks", "resnet18", "--no-peers", "--size", "128", "--batch", "1", "--rounds", "1"]
    files = ["--json", str(tmp_path / "figures.json"), "--costs", str(tmp_path / "costs.json")]
    assert cuda.main([*arguments, *files]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"] == "Fake 0" and figures["target"] == "cuda:sm_80"
    assert figures["products"]["tops"] and all(np.isfinite(v) for v in figures["products"]["tops"].values())
    assert read_costs(tmp_path / "costs.json", "cuda:sm_80").device == "Fake 0 (sm_80)"
