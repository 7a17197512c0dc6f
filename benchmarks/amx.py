"""Whether a process uses Intel AMX, and how to keep it from doing so.

Linux hands out the tile registers on request (arch_prctl).  What was granted tells whether an engine means to use
them; a refused request makes the engine fall back to what machines without AMX run.
"""

from __future__ import annotations

import ctypes
import platform

_TILE_DATA = 1 << 18
_ARCH_PRCTL, _GET_PERMISSION, _REQUEST_PERMISSION = 158, 0x1022, 0x1023
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def _is_linux_x86() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def granted() -> bool:
    """Whether this process asked for the tile registers and got them."""
    if not _is_linux_x86():
        return False
    mask = ctypes.c_uint64(0)
    failed = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _GET_PERMISSION, ctypes.byref(mask))
    return not failed and bool(mask.value & _TILE_DATA)


def refuse() -> None:
    """Let every later request of this process for tile registers fail.

    Raises:
        OSError: the system does not allow such a filter.
    """
    if not _is_linux_x86():
        return
    filter_ = (
        (_LOAD, 0, 0, _NUMBER), (_IF_EQUAL, 0, 3, _ARCH_PRCTL), (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_EQUAL, 0, 1, _REQUEST_PERMISSION), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW),
    )  # fmt: skip
    program = _Program(len(filter_), (_Instruction * len(filter_))(*(_Instruction(*line) for line in filter_)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "the system call filter was refused")
