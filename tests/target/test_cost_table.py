"""Costs measured on one machine and used on another: the file, and plans made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompile import api, job
from qcompile.errors import UsageError
from qcompile.pm.registry import find_target, gpu_features, shipped_costs
from qcompile.target.backend import Measurement
from qcompile.target.cost import CostCache
from qcompile.target.program import work_of
from qcompile.target.table import MeasuredCosts, export_costs, import_costs, read_costs
from qcompile.verification import lower_again
from targets.cuda import build

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits_resnet"
TARGET = "cuda:sm_80"

without_gpu = pytest.mark.skipif(bool(gpu_features()), reason="this machine has a GPU and measures")


def table(rows: dict[str, float], target: str = TARGET) -> MeasuredCosts:
    found = {key: Measurement(seconds, seconds, 10, 1) for key, seconds in rows.items()}
    return MeasuredCosts(target, "Imagined GPU (sm_80)", "imagined", 1, found)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests needs machine code."""
    monkeypatch.setattr(build, "find_compiler", lambda: "none")
    monkeypatch.setattr(build, "_version", lambda compiler: "none")
    monkeypatch.setattr(build, "compile_text", lambda text, architecture, compiler: build.Image(b"code", b"ptx"))


def compiled(out: Path, **options: Any) -> api.CompileResult:
    given = {"latency": "1ms", "calib": DIGITS / "calib.npz", "samples": 32, "rounding": "nearest", **options}
    return api.compile(DIGITS / "digits_resnet.onnx", target=TARGET, out=out, overwrite=True, **given)


def imagined(result: api.CompileResult) -> tuple[dict[str, float], dict[str, str]]:
    """Times in which the last implementation of every kernel is the fastest; and which that is, by kernel."""
    artifact = result.artifact
    program = lower_again(artifact)
    rows, best = {}, {}
    for kernel in program.kernels:
        variants = artifact.backend.variants(kernel, program)
        best[kernel.name] = variants[-1]
        for place, variant in enumerate(variants):
            rows[work_of(kernel, program, variant).key] = 1e-6 * (len(variants) - place)
    return rows, best


@without_gpu
def test_plan_from_a_table(tmp_path: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    guessed = compiled(tmp_path / "guessed.qc", bits=[8], act_bits=[8])
    rows, best = imagined(guessed)
    table(rows).write(tmp_path / "costs.json")
    result = compiled(tmp_path / "table.qc", bits=[8], act_bits=[8], costs=tmp_path / "costs.json")
    assert result.artifact.manifest.record.kernels == best
    assert result.predicted_ms == pytest.approx(1e-3 * len(best)) and result.measured_ms is None
    assert json.loads((result.artifact.path / "plan.json").read_text())["costs"] == "shipped"
    (warning,) = result.warnings
    assert "Imagined GPU (sm_80), of another version of the kernels (costs.json)" in warning
    # A table that comes with the target needs no option.
    monkeypatch.setattr(job, "shipped_costs", lambda target: tmp_path / "costs.json")
    shipped = compiled(tmp_path / "shipped.qc", bits=[8], act_bits=[8])
    assert shipped.artifact.manifest.record.kernels == best and "Imagined GPU" in shipped.warnings[0]


@without_gpu
def test_what_a_table_lacks_is_estimated(tmp_path: Path, uncompiled: None) -> None:
    guessed = compiled(tmp_path / "guessed.qc", bits=[8], act_bits=[8])
    rows, best = imagined(guessed)
    known = dict(list(rows.items())[:2])
    table(known).write(tmp_path / "costs.json")
    result = compiled(tmp_path / "table.qc", bits=[8], act_bits=[8], costs=tmp_path / "costs.json")
    assert result.predicted_ms is not None and result.predicted_ms > 0
    assert set(result.artifact.manifest.record.kernels) == set(best)


def test_only_what_was_measured_is_shipped() -> None:
    """Files under targets/costs are real tables of their targets."""
    for path in (ROOT / "targets" / "costs").glob("*.json"):
        target = path.stem.replace("-sm_", ":sm_")
        assert shipped_costs(find_target(target)) == path
        found = read_costs(path, target)
        assert found.rows and found.device


def test_file_and_cache(tmp_path: Path) -> None:
    there = CostCache(tmp_path / "there", "Imagined GPU (sm_80)")
    for key, seconds in (("a", 1e-6), ("b", 2e-6)):
        there.put_row(key, "imagined", Measurement(seconds, 2 * seconds, 7, 1))
    there.put_row("a", "other compiler", Measurement(9.0, 9.0, 7, 1))
    found = export_costs(there, TARGET, "imagined")
    assert {key: m.median for key, m in found.rows.items()} == {"a": 1e-6, "b": 2e-6}
    found.write(tmp_path / "costs.json")
    again = read_costs(tmp_path / "costs.json", TARGET)
    assert again == found and again.seconds("a") == 1e-6 and again.seconds("c") is None
    here = CostCache(tmp_path / "here", "Imagined GPU (sm_80)")
    assert import_costs(again, here, ["b", "unknown"]) == 1
    assert export_costs(here, TARGET, "imagined").rows == {"b": again.rows["b"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "no file of costs"), ("[]", "no file of costs"), ("{}", "no file of costs"),
        (json.dumps({**table({"a": 1e-6}).to_json(), "format": 9}), "format 9"),
        (json.dumps(table({"a": 1e-6}, "cuda:sm_90").to_json()), "costs of cuda:sm_90, not of cuda:sm_80"),
        (json.dumps(table({"a": -1.0}).to_json()), "a time that is none"),
        (json.dumps({**table({}).to_json(), "seconds": {"a": ["x", 1, 1]}}), "no file of costs"),
    ],
)  # fmt: skip
def test_wrong_files(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_costs(tmp_path / "costs.json", TARGET)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the costs"):
        read_costs(tmp_path / "costs.json", TARGET)
