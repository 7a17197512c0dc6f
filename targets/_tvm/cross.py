"""Compilers for machines that this one is not: which linkers and emulators a target names, and which are here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from qcompile.errors import TargetError

ZIG = "ziglang"
"""First word of a linker that is the Python package of the Zig compiler, a complete C cross-compiler."""

DEFAULT_LINKER = "cc"


def linkers(options: Mapping[str, str]) -> list[list[str]]:
    """The commands a target's option `linker` allows, preferred first; they are separated by `|`."""
    return [words.split() for words in options.get("linker", DEFAULT_LINKER).split("|")]


def find_linker(options: Mapping[str, str]) -> list[str]:
    """The first of a target's linkers that this machine has, as a command.

    Raises:
        TargetError: there is none; the message names all and the hint says what to install.
    """
    for name, *rest in linkers(options):
        if name == ZIG:
            if importlib.util.find_spec(ZIG):
                return [sys.executable, "-m", ZIG, *rest]
        elif found := shutil.which(name):
            return [found, *rest]
    names = [words[0] for words in linkers(options)]
    raise TargetError(
        f"no linker for {options.get('mtriple', 'this machine')} here: looked for {', '.join(names)}",
        hint=options.get("linker_hint", "install a C compiler for the target (gcc or clang)"),
    )


def run_compiler(command: Sequence[str], what: str) -> None:
    """Run a C compiler or linker; TargetError says what failed to be made of `what`, and what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"{what} does not compile with {command[0]}: {done.stderr.strip()[-1500:]}")


def toolchain(options: Mapping[str, str]) -> str:
    """`find_linker` for people; see `qcompile.target.model.Target`."""
    return " ".join(find_linker(options))


def find_emulator(options: Mapping[str, str]) -> list[str] | None:
    """The command that runs a target's programs here, or None where there is none."""
    name, *rest = options.get("emulator", "").split() or [""]
    found = shutil.which(name) if name else None
    return None if found is None else [found, *rest]
