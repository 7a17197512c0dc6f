"""Compilers and emulators that are not there, programs that fail, and what the scan calls floating point."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qcompile.errors import DeviceError, TargetError
from qcompile.pm.registry import find_backend, find_target
from targets._tvm import cross, emulate
from targets._tvm.cpu import CpuBackend
from targets._tvm.float_scan import assembly_float_operations
from targets.aarch64.target import AARCH64_DOTPROD
from targets.arm.target import ARM_NEON


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross.shutil, "which", lambda name: None)
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("nothing_installed")
def test_without_a_linker_the_message_names_what_was_looked_for() -> None:
    with pytest.raises(TargetError) as error:
        cross.find_linker({**AARCH64_DOTPROD.options, "mtriple": "aarch64-linux-gnu"})
    assert error.value.message == ("no linker for aarch64-linux-gnu here: looked for aarch64-linux-gnu-gcc, ziglang")
    assert error.value.hint == "install gcc-aarch64-linux-gnu (Debian, Ubuntu) or the Python package ziglang"


def test_zig_stands_in_for_a_missing_gcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross.shutil, "which", lambda name: None)
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    command = cross.find_linker(ARM_NEON.options)
    assert command[:5] == [sys.executable, "-m", "ziglang", "cc", "-target"]


@pytest.mark.usefixtures("nothing_installed")
def test_without_an_emulator_the_message_says_what_to_install(tmp_path: Path) -> None:
    options = {**AARCH64_DOTPROD.options, "mtriple": "aarch64-linux-gnu"}
    with pytest.raises(DeviceError) as error:
        emulate.Emulated(tmp_path / "library.so", options, "qcompile_run", 2)
    assert error.value.message == (
        f"{tmp_path} is for aarch64-linux-gnu, which this machine is not, and there is no qemu-aarch64 here to run it"
    )
    assert error.value.hint == "install qemu-user (Debian, Ubuntu), or run it on the device"


def test_a_foreign_kernel_is_not_timed_here() -> None:
    backend = find_backend(find_target("aarch64-dotprod"))
    assert isinstance(backend, CpuBackend)
    backend.architecture = "another"
    with pytest.raises(DeviceError, match="kernels for aarch64-dotprod cannot be timed on this machine"):
        backend.measure([], 1)


@pytest.mark.parametrize("target", [AARCH64_DOTPROD, ARM_NEON], ids=lambda t: t.name)
def test_the_driver_says_why_it_fails(target: object, tmp_path: Path) -> None:
    options = target.options  # type: ignore[attr-defined]
    if cross.find_emulator(options) is None or not cross.shutil.which(cross.linkers(options)[0][0]):
        pytest.skip(f"no {options['emulator'].split()[0]} or no {cross.linkers(options)[0][0]} here")
    emulated = emulate.Emulated(tmp_path / "nothing.so", options, "qcompile_run", 2)
    with pytest.raises(DeviceError, match=r"ended with status 1 after 0 of 8 bytes: driver: cannot open .*nothing.so"):
        emulated.call(b"", 64, [[b"1234"]], [8])
    library = tmp_path / "library.so"
    source = tmp_path / "library.c"
    source.write_text(
        "extern int nowhere(void);\n"
        "int elsewhere(void *p, int *a, int *x, int *y) { return NOWHERE; }\n"
        "int twice(void *p, int *a, int *x, int *y) { y[0] = 2 * x[0]; y[1] = a[0]++; return 0; }\n"
    )
    command = [*cross.find_linker(options), "-shared", "-fPIC", "-O1", "-w", "-nodefaultlibs", "-Wl,--hash-style=both"]
    for value, entry, message in (
        ("nowhere()", "twice", "driver: undefined symbol nowhere"),
        ("0", "thrice", "driver: the library has no entry function"),
    ):
        emulate.subprocess.run([*command, f"-DNOWHERE={value}", "-o", str(library), str(source)], check=True)
        with pytest.raises(DeviceError, match=message):
            emulate.Emulated(library, options, entry, 2).call(b"", 64, [[b"1234"]], [8])
    works = emulate.Emulated(library, options, "twice", 2)
    samples = [[np.array([n], dtype="<i4").tobytes()] for n in (5, -7)]
    # The arena is zeros at first and lives from call to call.
    assert works.call(b"", 64, samples, [8]).view("<i4").tolist() == [10, 0, -14, 1]


def test_the_scan_knows_arm_arithmetic_from_moves() -> None:
    arm = "".join(
        f"\t{line}\n" for line in ("vmov.f32\ts0, s1", "vadd.i32\tq0, q0, q1", "vmull.s8\tq0, d0, d1", "vldr\td0, [r0]")
    )
    assert assembly_float_operations("f", arm, "arm") == []
    assert assembly_float_operations("f", "\tvadd.f32\tq0, q0, q1\n\tvcvt.s32.f32\tq0, q1\n", "arm") == [
        "f: vadd.f32", "f: vcvt.s32.f32",
    ]  # fmt: skip
    moves = "\tfmov\tw8, s0\n\tsdot\tv0.4s, v1.16b, v2.4b[0]\n\tsqdmulh\tv0.4s, v0.4s, v1.4s\n"
    assert assembly_float_operations("f", moves, "aarch64") == []
    assert assembly_float_operations("f", "\tfmla\tv0.4s, v1.4s, v2.4s\n\tscvtf\tv0.4s, v0.4s\n", "aarch64") == [
        "f: fmla", "f: scvtf",
    ]  # fmt: skip
