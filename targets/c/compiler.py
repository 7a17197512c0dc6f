"""The C compiler of this machine, for running portable C here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import TargetError

_CANDIDATES = ("cc", "gcc", "clang")
_FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-s")


def find_compiler() -> list[str] | None:
    """The command: $CC, or the first of cc, gcc and clang; None where there is none."""
    if chosen := os.environ.get("CC"):
        command = shlex.split(chosen)
        return command if shutil.which(command[0]) else None
    return next(([path] for name in _CANDIDATES if (path := shutil.which(name))), None)


def compiler() -> list[str]:
    """`find_compiler`, or TargetError."""
    if (found := find_compiler()) is None:
        raise TargetError(
            "no C compiler on this machine to run portable C with",
            hint="install gcc or clang, or name one in the environment variable CC; export needs none",
        )
    return found


def toolchain(options: Mapping[str, str]) -> str:
    """`compiler` for people; see `qcompile.target.model.Target`."""
    return " ".join(compiler())


@cache
def _version(command: tuple[str, ...]) -> str:
    text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    return (text.splitlines() or ["unknown"])[0]


def compiler_version() -> str:
    """The first line of what the compiler says about itself."""
    return _version(tuple(compiler()))


def build_shared(text: str, output: Path) -> None:
    """Compile C text into a shared library; equal texts give equal bytes.

    Raises:
        TargetError: there is no compiler, or it refuses the text.
    """
    command = compiler()
    with TemporaryDirectory() as folder:
        # A relative name, so that no folder of this machine enters the library.
        (Path(folder) / "program.c").write_text(text)
        done = subprocess.run(
            [*command, *_FLAGS, "-o", str(output.resolve()), "program.c"],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
    if done.returncode:
        raise TargetError(f"{command[0]} failed on generated code: {done.stderr.strip()[-2000:]}")
