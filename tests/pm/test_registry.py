"""Names to passes and targets; packages that shadow ours; the target of this processor."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from qcompile.errors import InstallError, TargetError, UsageError
from qcompile.pm import registry
from qcompile.pm.base import Pass
from qcompile.target.model import Target

ROOT = Path(__file__).resolve().parents[2]


def test_passes_and_targets_by_name() -> None:
    found = registry.find_pass("solve-bits")
    assert issubclass(found, Pass)
    assert found.name == "solve-bits"
    assert registry.find_target("reference").name == "reference"
    assert "solve-bits" in registry.pass_names()
    assert "reference" in registry.target_names()
    assert hasattr(registry.find_backend(registry.find_target("reference")), "build")


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UsageError) as error:
        registry.find_pass("solve_bit")
    assert str(error.value) == "unknown pass 'solve_bit'\n  hint: did you mean solve-bits?"
    with pytest.raises(TargetError) as error2:
        registry.find_target("X86-VNI")
    assert str(error2.value) == "unknown target 'X86-VNI'\n  hint: did you mean x86-vnni or x86-avx2?"
    with pytest.raises(TargetError, match=r"targets are reference, .*cpu"):
        registry.find_target("zzz")


@pytest.mark.parametrize("name", ["passes", "targets"])
@pytest.mark.parametrize("form", ["module", "package", "folder"])
def test_a_package_that_shadows_ours_is_named(tmp_path: Path, name: str, form: str) -> None:
    """A user's own targets.py where qcompile is started; a plain folder only wins where ours is missing."""
    if form == "module":
        (tmp_path / f"{name}.py").write_text("X = 1\n", encoding="utf-8")
    else:
        (tmp_path / name).mkdir()
        if form == "package":
            (tmp_path / name / "__init__.py").write_text("CATALOGUE = {}\n", encoding="utf-8")
    code = f"from qcompile.pm import registry; print(registry._package({name!r}).__qcompile_api__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=tmp_path,
    )
    if form == "folder":
        assert done.stdout.strip() == "1", done.stderr
    else:
        assert f"InstallError: another {name!r} shadows the one of qcompile: {tmp_path / name}" in done.stderr


def test_a_missing_module_is_an_installation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import passes

    monkeypatch.setattr(passes, "CATALOGUE", {"a": "passes.nowhere:A", "b": "passes.structure:B", "c": "os:getcwd"})
    with pytest.raises(InstallError, match=r"pass 'a' cannot be imported from passes.nowhere: No module named"):
        registry.find_pass("a")
    with pytest.raises(InstallError, match=r"pass 'b': module passes.structure has no 'B'"):
        registry.find_pass("b")
    with pytest.raises(InstallError, match="not a subclass of Pass"):
        registry.find_pass("c")


def test_third_parties_add_names_and_take_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> list[EntryPoint]:
        found = [
            EntryPoint("their-pass", "passes.plan.uniform_bits:UniformBits", "qcompile.passes"),
            EntryPoint("solve-bits", "os:getcwd", "qcompile.passes"),
        ]
        return [point for point in found if point.group == group]

    monkeypatch.setattr(registry, "entry_points", points)
    assert registry.find_pass("their-pass").name == "uniform-bits"
    assert registry.find_pass("solve-bits").name == "solve-bits"
    assert registry.pass_names()[-1] == "their-pass"


def fake_targets(monkeypatch: pytest.MonkeyPatch, *targets: Target) -> None:
    import targets as package

    made: dict[str, Any] = {t.name: t for t in targets}
    monkeypatch.setattr(package, "CATALOGUE", {name: f"fake:{name}" for name in made})
    monkeypatch.setattr(registry, "_import", lambda place, what: made[place.partition(":")[2]])


def test_cpu_is_the_fastest_target_the_processor_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_targets(
        monkeypatch,
        Target("plain", "", ""),
        Target("slow", "", "", features=("avx2",), peak_macs_per_second=1e9),
        Target("fast", "", "", features=("avx2", "avx512_vnni"), peak_macs_per_second=4e9),
    )
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", "sse2 avx2,avx512_vnni")
    assert registry.find_target("cpu").name == "fast"
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", "sse2 avx2")
    assert registry.find_target("cpu").name == "slow"
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", "")
    with pytest.raises(TargetError) as error:
        registry.find_target("cpu")
    assert error.value.message == ("no target fits this processor: slow needs avx2; fast needs avx2, avx512_vnni")


def test_the_real_features_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCOMPILE_CPU_FEATURES", raising=False)
    assert registry.host_features() == registry.host_features()
    assert all(" " not in feature for feature in registry.host_features())
