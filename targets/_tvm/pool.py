"""TVM's thread pool by its C interface: no Python package of TVM, and so no compiler, is loaded for it.

The packages `tvm` and `tvm_ffi` take 300 MB and two seconds to import; a program that only runs needs two small
libraries of theirs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

from qcompile.errors import InstallError

_INTEGER = 1
"""kTVMFFIInt."""
_ANY_CORE = 1
"""Affinity mode: any core, workers not pinned."""


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Any(ctypes.Structure):
    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


def set_threads(threads: int) -> None:
    """How many threads of TVM's pool parallel loops use.

    The pool is created on first use, with at most TVM_NUM_THREADS threads and by default half of the CPUs.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, os.cpu_count() or 1)))
    ffi, _ = _libraries()
    name, function, nothing = b"runtime.config_threadpool", ctypes.c_void_p(), _Any()
    failed = ffi.TVMFFIFunctionGetGlobal(ctypes.byref(_Bytes(name, len(name))), ctypes.byref(function))
    if not failed and function:
        arguments = (_Any * 2)(_Any(_INTEGER, 0, _ANY_CORE), _Any(_INTEGER, 0, threads))
        failed = ffi.TVMFFIFunctionCall(function, arguments, 2, ctypes.byref(nothing))
        ffi.TVMFFIObjectDecRef(function)
    if failed or not function:
        raise InstallError("TVM's thread pool cannot be set", hint="install the version of apache-tvm we ask for")


def launcher() -> int:
    """Address of what runs the parts of a parallel loop, for a library's `__TVMBackendParallelLaunch`."""
    _, runtime = _libraries()
    return int(ctypes.cast(runtime.TVMBackendParallelLaunch, ctypes.c_void_p).value or 0)


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    ffi = ctypes.CDLL(str(_find("tvm_ffi", "libtvm_ffi")), ctypes.RTLD_GLOBAL)
    return ffi, ctypes.CDLL(str(_find("tvm", "libtvm_runtime")))


def _find(package: str, stem: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    for folder in folders:
        for suffix in (".so", ".dylib"):
            if found := sorted(folder.rglob(f"{stem}{suffix}")):
                return found[0]
    raise InstallError(f"{stem} of the package {package} is not there", hint="install apache-tvm to run artifacts")
