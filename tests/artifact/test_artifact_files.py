"""Writing and reading artifacts: the same bytes, all or nothing, and every damage found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile import artifact
from qcompile.artifact.copying import publish_copy
from qcompile.errors import ArtifactError, DeviceError, InternalError, StorageError, UsageError
from qcompile.ir import Graph

Write = Callable[..., artifact.Manifest]
FILES = [
    "goldens.npz",
    "graph.qir",
    "lib/kernels.json",
    "lib/library.so",
    "parameters.bin",
    "parameters.json",
    "plan.json",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip(tmp_path: Path, write: Write, graph: Graph, record: artifact.Record) -> None:
    manifest = write(tmp_path / "m.qc")
    loaded = artifact.load(tmp_path / "m.qc")
    assert loaded.manifest == manifest
    assert loaded.manifest.record == record
    assert loaded.graph.content_hash == graph.content_hash
    assert loaded.bits == {"conv": (4, 8)}
    assert loaded.threads == record.threads
    assert sorted(manifest.files) == FILES
    assert manifest.weight_bytes == -(-5 * 3 * 9 * 4 // 8)
    assert manifest.parameter_bytes == (tmp_path / "m.qc" / "parameters.bin").stat().st_size


def test_equal_content_gives_equal_bytes(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a.qc")
    write(tmp_path / "elsewhere" / "b.qc")
    assert contents(tmp_path / "a.qc") == contents(tmp_path / "elsewhere" / "b.qc")
    assert not any(str(tmp_path).encode() in content for content in contents(tmp_path / "a.qc").values())


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_flipped_byte_is_found(tmp_path: Path, write: Write, name: str) -> None:
    write(tmp_path / "m.qc")
    path = tmp_path / "m.qc" / name
    original = path.read_bytes()
    positions = range(0, len(original), 5) if name == "manifest.json" else [0, len(original) // 2, len(original) - 1]
    for position in positions:
        damaged = bytearray(original)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError) as caught:
            artifact.load(tmp_path / "m.qc")
        assert name.rpartition("/")[2] in str(caught.value)
    path.write_bytes(original)
    artifact.load(tmp_path / "m.qc")


def test_a_missing_file_is_named(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "m.qc"
    write(folder)
    (folder / "lib" / "library.so").unlink()
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        artifact.load(folder)
    assert str(caught.value) == (
        f"{folder}: lib/library.so cannot be read (No such file or directory); "
        "plan.json has changed since it was written\n"
        "  hint: compile the model again, or copy the artifact again"
    )
    assert caught.value.exit_code == 7


def test_what_is_no_artifact(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UsageError, match=r"no such artifact: .*nothing\.qc"):
        artifact.load(tmp_path / "nothing.qc")
    with pytest.raises(ArtifactError, match=r"is not an artifact: it has no manifest\.json"):
        artifact.load(tmp_path)
    write(tmp_path / "m.qc")
    manifest = tmp_path / "m.qc" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(ArtifactError, match="states format 99, this version of qcompile reads format 1"):
        artifact.load(tmp_path / "m.qc")


def test_a_manifest_cannot_name_files_outside(tmp_path: Path, write: Write) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    record = artifact.FileRecord.of(b"x")
    manifest = write(tmp_path / "m.qc")
    for name in ("../secret", str(tmp_path / "secret"), "lib/../../secret"):
        text = artifact.Manifest(1, manifest.record, manifest.build, 1, 1, {**manifest.files, name: record}).to_text()
        (tmp_path / "m.qc" / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match="names a file outside of the artifact"):
            artifact.load(tmp_path / "m.qc")


def test_a_link_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "m.qc")
    path = tmp_path / "m.qc" / "plan.json"
    path.rename(tmp_path / "plan.json")
    path.symlink_to(tmp_path / "plan.json")
    with pytest.raises(ArtifactError, match=r"plan\.json cannot be read \(a link\)"):
        artifact.load(tmp_path / "m.qc")


def test_nothing_is_replaced_by_accident(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "m.qc")
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "m.qc")
    assert str(caught.value) == (f"{tmp_path / 'm.qc'} exists\n  hint: choose another -o, or replace it with --force")
    write(tmp_path / "m.qc", plan={"bits": {"conv": (4, 4)}}, overwrite=True)
    assert artifact.load(tmp_path / "m.qc").bits == {"conv": (4, 4)}
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not an artifact, so it is not replaced"):
        write(home, overwrite=True)
    assert (home / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("boom")])
def test_a_failed_write_leaves_nothing(tmp_path: Path, write: Write, error: Exception) -> None:
    def build(folder: Path) -> Mapping[str, str]:
        (folder / "library.so").write_bytes(b"half")
        raise error

    expected: Any = StorageError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(expected) as caught:
        write(tmp_path / "m.qc", build=build)
    assert list(tmp_path.iterdir()) == []
    if expected is StorageError:
        assert "m.qc: No space left on device" in str(caught.value)
        assert caught.value.exit_code == 8
    write(tmp_path / "m.qc")
    before = contents(tmp_path / "m.qc")
    with pytest.raises(expected):
        write(tmp_path / "m.qc", build=build, overwrite=True)
    assert contents(tmp_path / "m.qc") == before


def test_an_error_of_the_build_that_is_not_the_storages_passes(tmp_path: Path, write: Write) -> None:
    def build(folder: Path) -> Mapping[str, str]:
        raise FileNotFoundError(errno.ENOENT, "no linker")

    with pytest.raises(FileNotFoundError):
        write(tmp_path / "m.qc", build=build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path, write: Write) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        write(tmp_path / "m.qc")


def test_a_file_where_the_folder_should_be(tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / "file" / "m.qc")


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path, write: Write) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qcompile.artifact.files import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.qc")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    process.stdout.readline()
    write(tmp_path / "m.qc")  # while another process is writing: its folder is left alone
    assert len(list(tmp_path.glob(".m.qc.partial-*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    write(tmp_path / "m.qc", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.qc"]


def test_a_copy_is_published_whole(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a.qc")
    publish_copy(tmp_path / "a.qc", tmp_path / "sub" / "b.qc", overwrite=False)
    assert contents(tmp_path / "a.qc") == contents(tmp_path / "sub" / "b.qc")
    artifact.load(tmp_path / "sub" / "b.qc")


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    write(tmp_path / "a.qc")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match=r"cannot write .*b\.qc: No space left on device"):
        publish_copy(tmp_path / "a.qc", tmp_path / "b.qc", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.qc"]


def test_measurements_live_apart(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "m.qc")
    loaded = artifact.load(tmp_path / "m.qc")
    assert loaded.measurements() == {}
    artifact.write_measurements(tmp_path / "m.qc", {"median_ms": 3.0, "threads": 1})
    assert artifact.load(tmp_path / "m.qc").measurements() == {"median_ms": 3.0, "threads": 1}
    (tmp_path / "m.qc" / "measurements.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"measurements\.json is damaged"):
        artifact.load(tmp_path / "m.qc").measurements()


def test_run_equals_the_reference(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "m.qc")
    loaded = artifact.load(tmp_path / "m.qc")
    x = np.random.default_rng(3).normal(size=(130, 3, 4, 4)).astype(np.float32)
    outputs = loaded.run({"input": x})
    assert outputs["scores"].shape == (130, 20)
    np.testing.assert_allclose(outputs["scores"].sum(axis=1), 1, rtol=1e-5)
    integers = loaded.quantize({"input": x})
    np.testing.assert_array_equal(loaded.run_int(integers)["scores"], loaded.reference_int(integers)["scores"])
    np.testing.assert_array_equal(loaded.finish(loaded.run_int(integers))["scores"], outputs["scores"])
    assert loaded.check_goldens() == 4 * 20


def test_a_processor_that_lacks_an_instruction_set(
    tmp_path: Path, write: Write, record: artifact.Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    write(tmp_path / "m.qc", record=replace(record, target="x86-vnni"))
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", "sse2")
    with pytest.raises(DeviceError, match="is for x86-vnni; this processor lacks avx512") as caught:
        artifact.load(tmp_path / "m.qc").run({"input": np.zeros((1, 3, 4, 4), np.float32)})
    assert caught.value.exit_code == 6


def test_a_plan_needs_its_bits(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InternalError):
        write(tmp_path / "m.qc", plan={})
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_numpy_only() -> None:
    code = (
        "import sys, qcompile.artifact, qcompile.data; "
        "print(*(m for m in ('torch', 'tvm', 'onnx', 'PIL', 'rich', 'typer') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == ""
