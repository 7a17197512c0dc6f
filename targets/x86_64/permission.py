"""The right to use Intel AMX's tile registers, and running what needs it; imports no compiler."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

from qcompile.errors import DeviceError
from qcompile.ir import Graph
from targets._tvm.runner import LibraryExecutable

_SYSCALL_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


def request_permission() -> None:
    """Ask the operating system to let all threads of this process use the tile registers.

    Raises:
        DeviceError: it refuses, or this is no processor that has them.
    """
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        libc = ctypes.CDLL(None, use_errno=True)
        if not libc.syscall(_SYSCALL_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA):
            return
        why = f"Linux refuses them (errno {ctypes.get_errno()})"
    else:
        why = f"{platform.system()} on {platform.machine()} does not offer them"
    raise DeviceError(
        f"the kernels use the tile registers of Intel AMX, and {why}",
        hint="allow arch_prctl (a sandbox may filter it; Linux has it since 5.16), or compile for x86-vnni",
    )


def load(directory: Path, graph: Graph) -> LibraryExecutable:
    """A library with tile instructions, ready to run."""
    request_permission()
    return LibraryExecutable(directory, graph)
