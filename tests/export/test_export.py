"""Exported programs: built with all warnings as errors, run, and compared with the reference's integers."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from exported import NETWORKS, Make
from typer.testing import CliRunner

from qcompile import api
from qcompile.artifact import Artifact
from qcompile.cli.app import app
from qcompile.errors import TargetError, UsageError
from qcompile.pm.registry import find_target, host_features, target_names
from qcompile.target.model import host_architecture

ALLOWED = {"memcpy", "memmove", "memset"}
"""What a compiler may make of a loop; the header says so."""

STRICT = "-std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wcast-align -Wstrict-prototypes -Wmissing-prototypes -Werror"
SANITIZED = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
CROSS = {
    # architecture → (compiler, emulator, package that is missing)
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"),
    "arm": ("arm-linux-gnueabihf-gcc", "qemu-arm -cpu max -L /usr/arm-linux-gnueabihf"),
}

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("make") is None, reason="no gcc and make on this machine"
)


def cross(architecture: str) -> tuple[str, str]:
    """Compiler and emulator of another machine; skips where one is missing."""
    compiler, emulator = CROSS[architecture]
    for tool in (compiler, emulator.split()[0]):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine: install gcc-{compiler.removesuffix('-gcc')} and qemu-user")
    return compiler, emulator


def passed(done: subprocess.CompletedProcess[str], prefix: str = "model") -> bool:
    """Whether the self-test ran, compared something, and found no difference."""
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(rf"{prefix}: 0 of [1-9]\d* golden integers differ", done.stdout) is not None


def undefined(compiler: str, *files: Path) -> set[str]:
    """Symbols that somebody outside of these files must define."""
    nm = compiler.removesuffix("gcc") + "nm"
    text = subprocess.run([nm, *map(str, files)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[-1] for line in text.splitlines() if re.search(r"\bU \w", line)}
    return needed - {line.split()[-1] for line in text.splitlines() if re.search(r"\b[TDBRV] \w", line)}


@pytest.mark.parametrize("network", NETWORKS)
class TestPortable:
    """`--target c`."""

    def test_native(self, network: str, artifacts: dict[str, Artifact], tmp_path: Path, make: Make) -> None:
        found = api.export(artifacts[network], tmp_path / "out", target="c")
        assert passed(make(tmp_path / "out", "test", CC="gcc", WARNINGS=STRICT))
        assert undefined("gcc", tmp_path / "out" / "libmodel.a") <= ALLOWED
        header = (tmp_path / "out" / "model.h").read_text()
        assert f"#define MODEL_ARENA_BYTES {found['arena_bytes']}\n" in header
        example = subprocess.run(["make", "-s", "-C", tmp_path / "out", "example"], check=True)
        assert example.returncode == 0
        text = subprocess.run([tmp_path / "out" / "example"], capture_output=True, text=True, check=True).stdout
        assert re.search(r"out_\w+\[0\] = -?\d+", text)

    def test_sanitizers(self, network: str, artifacts: dict[str, Artifact], tmp_path: Path, make: Make) -> None:
        api.export(artifacts[network], tmp_path / "out", target="c")
        done = make(tmp_path / "out", "test", CC="gcc", CFLAGS=SANITIZED)
        assert passed(done)
        assert done.stderr == ""

    @pytest.mark.parametrize("architecture", CROSS)
    def test_emulated(
        self, network: str, architecture: str, artifacts: dict[str, Artifact], tmp_path: Path, make: Make
    ) -> None:
        compiler, emulator = cross(architecture)
        api.export(artifacts[network], tmp_path / "out", target="c")
        assert passed(make(tmp_path / "out", "test", CC=compiler, RUN=emulator))


REFUSED = {"x86-amx": "tile registers need the operating system's permission"}
"""Targets whose programs cannot stand alone, and why."""


def object_targets() -> list[str]:
    """Those that code for processors is generated for."""
    processors = {"x86_64", *CROSS}
    return [n for n in target_names() if find_target(n).architecture in processors and n not in REFUSED]


def native_target() -> str:
    """One whose code this processor runs; skips where there is none."""
    for name in object_targets():
        target = find_target(name)
        if target.architecture == host_architecture() and host_features().issuperset(target.features):
            return name
    pytest.skip("no target of this processor")


@pytest.mark.parametrize("target", object_targets())
def test_objects(target: str, artifacts: dict[str, Artifact], tmp_path: Path, make: Make) -> None:
    """Kernels by TVM's code generator, as one object file that shows one function."""
    described = find_target(target)
    if described.architecture == host_architecture():
        if missing := set(described.features) - host_features():
            pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
        compiler, emulator = "gcc", ""
    elif described.architecture in CROSS:
        compiler, emulator = cross(described.architecture)
    else:
        pytest.skip(f"no compiler for {described.architecture} here")
    found = api.export(artifacts["digits_mobilenet"], tmp_path / "out", target=target, prefix="net")
    assert passed(make(tmp_path / "out", "test", CC=compiler, RUN=emulator), "net")
    assert set(found["undefined_symbols"]) <= ALLOWED
    assert undefined(compiler, tmp_path / "out" / "libnet.a") <= ALLOWED
    assert found["code_bytes"] < 400 << 10


GUARDED = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "model.c"

/* Memory whose end is the end of the world. */
static void *cornered(const void *from, size_t size)
{
    const size_t page = 4096, pages = (size + page - 1) / page;
    char *start = mmap(0, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *place = start + pages * page - size;
    if (start == MAP_FAILED || mprotect(start + pages * page, page, PROT_NONE)) {
        exit(3);
    }
    if (from) {
        memcpy(place, from, size);
    }
    return place;
}

int main(void)
{
    void *parameters = cornered(model_parameters, sizeof model_parameters);
    void *arena = cornered(0, MODEL_ARENA_BYTES);
    uint8_t *in = cornered(0, INPUT_SIZE);
    OUTPUT_TYPE *out = cornered(0, OUTPUT_SIZE * sizeof(OUTPUT_TYPE));
    return model_kernels(parameters, arena, in, out);
}
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="guard pages are made with mmap and mprotect")
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_read_behind_the_arrays(
    network: str, artifacts: dict[str, Artifact], tmp_path: Path, make: Make
) -> None:
    """Kernels read over the ends of values; the declared sizes hold that, to the byte before an unmapped page."""
    target = native_target()
    out = tmp_path / "out"
    found = api.export(artifacts[network], out, target=target)
    (port_in,), (port_out,) = found["inputs"], found["outputs"]
    (out / "guarded.c").write_text(GUARDED)
    sizes = [f"-DINPUT_SIZE=MODEL_{port_in['argument'].upper()}_SIZE"]
    sizes += [f"-DOUTPUT_SIZE=MODEL_{port_out['argument'].upper()}_SIZE", f"-DOUTPUT_TYPE={port_out['type']}"]
    command = ["gcc", "-w", "-std=gnu99", *sizes, "-o", "guarded", "guarded.c", "model_kernels.o"]
    subprocess.run(command, cwd=out, check=True)
    assert subprocess.run([out / "guarded"], check=False).returncode == 0


def test_two_programs_link_together(artifacts: dict[str, Artifact], tmp_path: Path, make: Make) -> None:
    for target in ("c", native_target()):
        both = {"one": artifacts["digits_resnet"], "two": artifacts["digits_mobilenet"]}
        for prefix, artifact in both.items():
            api.export(artifact, tmp_path / target / prefix, target=target, prefix=prefix)
            assert make(tmp_path / target / prefix, "all", CC="gcc").returncode == 0
        (tmp_path / target / "main.c").write_text(
            '#include "one/one.h"\n#include "two/two.h"\n'
            "int main(void) { return one_run(0, 0) == -1 && two_run(0, 0) == -1 ? 0 : 1; }\n"
        )
        command = ["gcc", "-Wall", "-Werror", "-o", "both", "main.c", "one/libone.a", "two/libtwo.a"]
        subprocess.run(command, cwd=tmp_path / target, check=True)
        assert subprocess.run([tmp_path / target / "both"], check=False).returncode == 0


def test_self_test_finds_a_wrong_integer(artifacts: dict[str, Artifact], tmp_path: Path, make: Make) -> None:
    """A test that cannot fail proves nothing."""
    out = tmp_path / "out"
    api.export(artifacts["digits_resnet"], out, target="c")
    header = out / "model_parameters.h"
    text = header.read_text()
    start = text.index("static const int32_t")
    first = re.compile(r"= \{\n-?\d+,").search(text, start)
    assert first is not None
    header.write_text(text[: first.start()] + "= {\n1234567," + text[first.end() :])
    done = make(out, "test", CC="gcc")
    assert done.returncode != 0
    assert re.search(r"model: [1-9]\d* of", done.stdout)


def test_cmake(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on this machine")
    out, build = tmp_path / "out", tmp_path / "build"
    api.export(artifacts["autoencoder"], out, target="c", prefix="ad")
    for command in (["cmake", "-S", out, "-B", build], ["cmake", "--build", build], ["ctest", "--test-dir", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_equal_artifacts_give_equal_files(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("c", native_target()):
        for folder in ("a", "b"):
            api.export(artifacts["digits_mobilenet"], tmp_path / name / folder, target=name)
        first, second = ({p.name: p.read_bytes() for p in (tmp_path / name / f).iterdir()} for f in ("a", "b"))
        assert first == second


class TestCommandLine:
    def test_json(self, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        arguments = ["export", str(artifacts["digits_resnet"].path), "--format", "c", "--out", str(out)]
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found == json.loads((out / "export.json").read_text())
        assert sorted(p.name for p in out.iterdir()) == found["files"]
        assert found["target"] == "c"
        assert found["parameter_bytes"] > 0
        # Again: only an earlier export is replaced, and only when asked.
        assert CliRunner().invoke(app, arguments).exit_code == 2
        assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
        (out / "export.json").unlink()
        done = CliRunner().invoke(app, [*arguments, "--force"])
        assert done.exit_code == 2
        assert "is not an exported program" in done.stderr

    @pytest.mark.parametrize("prefix", ["", "1st", "a-b", "int", "model.h", "main", "a" * 32, "../x", "é"])
    def test_prefix(self, prefix: str, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not a C identifier"):
            api.export(artifacts["autoencoder"], tmp_path / "out", prefix=prefix)
        assert not (tmp_path / "out").exists()

    def test_fast(self, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
        """Only what was chosen for a target can be kept."""
        api.export(artifacts["autoencoder"], tmp_path / "same", fast=True)
        with pytest.raises(UsageError, match="nothing was measured for aarch64-neon"):
            api.export(artifacts["autoencoder"], tmp_path / "out", target="aarch64-neon", fast=True)

    def test_what_cannot_be_exported(self, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
        with pytest.raises(TargetError, match="programs for reference cannot be exported"):
            api.export(artifacts["autoencoder"], tmp_path / "out", target="reference")
        for name, why in REFUSED.items():
            with pytest.raises(TargetError, match=why):
                api.export(artifacts["autoencoder"], tmp_path / "out", target=name)
        with pytest.raises(TargetError, match="unknown target"):
            api.export(artifacts["autoencoder"], tmp_path / "out", target="z80")
        with pytest.raises(UsageError, match="unknown export format 'go'"):
            api.export(artifacts["autoencoder"], tmp_path / "out", format="go")
        assert not (tmp_path / "out").exists()
