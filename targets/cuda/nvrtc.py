"""NVRTC, NVIDIA's compiler as a library: no host compiler, no processes, several threads at once.

One compilation for a real architecture gives its machine code and the PTX it was made of (NVRTC, "nvrtcGetCUBIN" and
"nvrtcGetPTX").
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError
from targets.cuda.places import HOME, package_folders

_PATTERNS = ("libnvrtc.so.*", "libnvrtc.so", "nvrtc64_*.dll")
_SYSTEM = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_FILE = b"kernels.cu"


def _candidates() -> Iterator[str]:
    """NVIDIA's Python packages first: they are as new as this project wants."""
    folders = [root / part for root in package_folders() for part in ("lib", "bin", "lib/x64")]
    if home := os.environ.get(HOME):
        folders += [Path(home) / part for part in ("lib64", "lib", "bin")]
    for folder in folders:
        for pattern in _PATTERNS:
            yield from sorted((str(path) for path in folder.glob(pattern) if "builtins" not in path.name), reverse=True)
    yield from _SYSTEM


@cache
def library() -> Any | None:
    """NVRTC, or None where it is not here."""
    for name in _candidates():
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        # Handles are pointers: without types ctypes would pass 32 bits of them.
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        return found
    return None


def version() -> str:
    """`13.0`.  NVRTC must be here."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    lib = library()
    assert lib is not None
    lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_text(text: str, options: Sequence[str]) -> tuple[bytes, bytes]:
    """(machine code, PTX) of a source; the machine code is empty for a virtual architecture.

    Raises:
        TargetError: the source does not compile, with the compiler's words.
    """
    lib = library()
    assert lib is not None
    program = ctypes.c_void_p()
    _check(lib, "nvrtcCreateProgram", ctypes.byref(program), text.encode(), _FILE, 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        if lib.nvrtcCompileProgram(program, len(options), given):
            log = _bytes(lib, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
            raise TargetError(f"the CUDA compiler failed: {log.decode(errors='replace').strip()[-2000:]}")
        code = _bytes(lib, "nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        # PTX comes with a final zero.
        return code, _bytes(lib, "nvrtcGetPTXSize", "nvrtcGetPTX", program).rstrip(b"\0")
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(lib: Any, size_function: str, function: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(lib, size_function, program, ctypes.byref(size))
    if not size.value:
        return b""
    buffer = ctypes.create_string_buffer(size.value)
    _check(lib, function, program, buffer)
    return buffer.raw


def _check(lib: Any, name: str, *arguments: Any) -> None:
    if code := getattr(lib, name)(*arguments):
        words = (lib.nvrtcGetErrorString(code) or b"unknown error").decode()
        raise TargetError(f"the CUDA compiler: {name}: {words} ({code})", hint="install nvidia-cuda-nvrtc again")
