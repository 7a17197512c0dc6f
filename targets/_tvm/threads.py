"""The threads that share the loops of kernels: `threads.so`, which every artifact for CPUs carries.

TVM's own pool (`TVMBackendParallelLaunch`) gives every thread its part and waits for all of them by offering its
processor to whoever wants it.  Beside one other busy process that takes milliseconds for each kernel.  See
`driver/threads.c` for what ours does instead.  All libraries of a process share one team, that of the first.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qcompile.errors import ArtifactError
from targets._tvm.cross import find_linker, run_compiler
from targets._tvm.shared_object import open_shared_object

THREADS = "threads.so"
HOOK = "__TVMBackendParallelLaunch"
"""A library's pointer to what runs its loops; one without shared loops has none."""

_SOURCE = Path(__file__).parent / "driver" / "threads.c"
_FLAGS = ("-std=gnu11", "-O2", "-g0", "-w", "-shared", "-fPIC", "-pthread", "-Wl,--build-id=none", "-Wl,-s")


class Team:
    """The threads of this process.

    Args:
        path: a `threads.so`.

    Attributes:
        launcher: address of what runs a loop.
    """

    def __init__(self, path: Path) -> None:
        self._library = open_shared_object(path)
        self.launcher = int(ctypes.cast(self._library.qcompile_launch, ctypes.c_void_p).value or 0)
        self._threads = 1
        os.register_at_fork(after_in_child=self._library.qcompile_forget_threads)

    def use(self, threads: int) -> None:
        """Share loops among so many threads, the caller among them."""
        if threads != self._threads:
            self._library.qcompile_use_threads(threads)
            self._threads = threads


_team: list[Team] = []


def connect(library: Any, folder: Path) -> None:
    """Let the team run a library's shared loops; the first library's folder holds what the team is made of.

    Raises:
        ArtifactError: it does not.
    """
    try:
        hook = ctypes.c_void_p.in_dll(library, HOOK)
    except ValueError:
        return
    if not _team:
        if not (folder / THREADS).exists():
            raise ArtifactError(
                f"{folder} has no {THREADS}: another version of qcompile wrote it", hint="compile the model again"
            )
        _team.append(Team(folder / THREADS))
    hook.value = launcher()


def launcher() -> int:
    """Address of what runs a loop, 0 before anything was connected."""
    return _team[0].launcher if _team else 0


def set_threads(threads: int) -> None:
    """How many threads share loops from now on; at first the caller is alone."""
    for team in _team:
        team.use(threads)


def write_threads(options: Mapping[str, str], folder: Path) -> None:
    """Compile `threads.so` into a folder; equal options and compilers give equal bytes.

    Raises:
        TargetError: no C compiler for the target is installed, or it cannot do this.
    """
    command = (*find_linker(options), *_FLAGS, str(_SOURCE), *options.get("link_flags", "").split())
    (folder / THREADS).write_bytes(_compiled(command))


@cache
def _compiled(command: tuple[str, ...]) -> bytes:
    with TemporaryDirectory() as folder:
        built = Path(folder) / THREADS
        run_compiler([*command, "-o", str(built)], THREADS)
        return built.read_bytes()
