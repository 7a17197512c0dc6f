"""What is said about this machine, and about one that lacks things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcompile.diagnosis import target_facts
from qcompile.pm.registry import find_target, target_names
from qcompile.target.model import host_architecture


def test_json(qcompile) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = qcompile("doctor", "--json")
    found = json.loads(out)
    assert code == (2 if found["problems"] else 0)
    assert set(found["targets"]) == set(target_names())
    assert found["targets"]["reference"]["runs"] == "natively"
    assert found["machine"]["architecture"] == host_architecture()
    assert found["packages"]["apache-tvm"] != "not installed"
    assert "trusted network" in found["devices"]


def test_for_people(qcompile) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = qcompile("doctor")
    for text in ("x86-avx2", "cost cache", "torch", "natively"):
        assert text in out


def test_targets_say_what_they_can(qcompile) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = qcompile("targets", "--json")
    assert code == 0
    for row in json.loads(out)["targets"]:
        assert row["runs"] in ("natively", "emulated", "no")
        assert row["measures"] == (row["runs"] == "natively")


class TestMissing:
    def test_processor_without_an_instruction_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        target = find_target("x86-vnni")
        monkeypatch.setenv("QCOMPILE_CPU_FEATURES", " ".join(set(target.features) - {"avx512_vnni"}))
        facts = target_facts(target)
        if host_architecture() == target.architecture:
            assert facts["lacks"] == ["avx512_vnni"]
        assert facts["runs"] != "natively"
        assert not facts["measures"]

    @pytest.mark.parametrize("name", ["x86-avx2", "aarch64-neon", "arm-neon", "c"])
    def test_machine_without_tools(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        facts = target_facts(find_target(name))
        assert not facts["compiles"]
        assert facts["runs"] == "no"
        assert facts["missing"]
        assert all("install" in text for text in facts["missing"])

    def test_cache_that_cannot_be_written(
        self,
        qcompile,  # type: ignore[no-untyped-def]
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("QCOMPILE_CACHE_DIR", str(tmp_path / "file" / "folder"))
        code, out, _ = qcompile("doctor", "--json")
        assert code == 2
        assert any("cost cache" in problem for problem in json.loads(out)["problems"])
