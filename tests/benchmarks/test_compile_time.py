"""Compile times: three real compilations that share a cache, and the table of what they took."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.compile_time import RUNS, Compilation, compilations, format_compilations, main, to_json

NET = Path(__file__).parents[2] / "models" / "digits_resnet"


def test_three_real_compilations_are_taken_apart() -> None:
    found = compilations(NET / "digits_resnet.onnx", NET / "calib.npz", "reference", ("26KiB", "30KiB"), 8)
    assert [row.run for row in found] == list(RUNS)
    assert all(0 < row.stages["analyse"] < row.seconds and row.cpu_seconds > 0 for row in found)


def test_all_share_a_cache_that_is_empty_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, bool]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        cache = Path(env["QCOMPILE_CACHE_DIR"])
        seen.append((str(cache), command[command.index("--memory") + 1], cache.exists()))
        cache.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, '{"seconds": {"analyse": 1.5}}')

    monkeypatch.setattr("benchmarks.compile_time.subprocess.run", run)
    assert compilations(NET, NET, "cpu", ("2MiB", "1MiB"), 8)[2].stages == {"analyse": 1.5}
    assert len({cache for cache, _, _ in seen}) == 1
    assert [row[1:] for row in seen] == [("2MiB", False), ("2MiB", True), ("1MiB", True)]


def test_a_compilation_that_fails_ends_the_benchmark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="exit code"):
        compilations(tmp_path / "none.onnx", NET / "calib.npz", "reference", ("26KiB", "30KiB"), 8)
    with pytest.raises(SystemExit):
        main(["--memory", "1MiB"])
    assert "two budgets" in capfd.readouterr().err


def test_the_table() -> None:
    rows = [
        Compilation("cold", 498.6, 732.2, {"analyse": 333.4, "build": 12.6}),
        Compilation("warm", 54, 58, {"solve": 4}),
    ]
    text = format_compilations(rows)
    assert "| cold | 499 |   732 |     333 |    13 |     0 |" in text
    assert "| warm |  54 |    58 |       0 |     0 |     4 |" in text
    assert json.loads(json.dumps(to_json({"cpus": 2}, "net", rows)))["runs"][1]["stages"] == {"solve": 4}
