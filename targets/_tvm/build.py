"""From PrimFuncs to machine code, deterministically: equal functions and targets give equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.tirx import transform

from qcompile.errors import InternalError, TargetError
from targets._tvm.float_scan import tir_float_operations

_PASSES = (
    transform.FlattenBuffer,
    transform.StmtSimplify,
    transform.UnrollLoop,
    transform.LowerIntrin,
)
"""Lowering of functions that are already scheduled: no schedulable blocks, no packed calling convention."""

_EXPORTS = "{ global: qcompile_run; bench*; __TVMBackendParallelLaunch; local: *; };\n"
"""What a library shows; what it does not reach, such as the compiler's support routines, is dropped."""

COMPILER_KEYS = ("kind", "mtriple", "mcpu", "mattr")
"""The target options that TVM reads; the others are for the backend."""


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code of one function, and the module to inspect it by: a listing is a second code generation."""

    name: str
    object: bytes
    module: Any

    @property
    def assembly(self) -> str:
        return str(self.module.inspect_source("asm"))


def compiler_version() -> str:
    return f"tvm {tvm.__version__}, llvm {tvm.get_global_func('target.llvm_version_major')()}"


def target_of(options: Mapping[str, str]) -> Any:
    """A TVM target that is its own host, so that nothing of the building machine enters the code."""
    described: dict[str, Any] = {k: v for k, v in options.items() if k in COMPILER_KEYS}
    described.setdefault("kind", "llvm")
    if "mattr" in described:
        described["mattr"] = described["mattr"].split(",")
    target = tvm.target.Target(described)
    return target.with_host(target)


def compile_function(func: Any, options: Mapping[str, str]) -> Code:
    """Compile one PrimFunc to an object file that exports it as a C function under its global symbol."""
    name = str(func.attrs["global_symbol"])
    if found := tir_float_operations(func):
        raise InternalError(f"kernel {name} computes in floating point: {', '.join(found)}")
    target = target_of(options)
    mod = transform.BindTarget(target)(tvm.IRModule({name: func}))
    for make in _PASSES:
        mod = make()(mod)
    library = tvm.get_global_func("target.build.llvm")(mod, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        library.write_to_file(str(path))
        code = path.read_bytes()
    return Code(name, code, library)


def compile_functions(funcs: Sequence[Any], options: Mapping[str, str], jobs: int | None = None) -> list[Code]:
    """`compile_function` on each, several at a time."""
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        return list(pool.map(lambda func: compile_function(func, options), funcs))


def link(objects: Sequence[bytes], output: Path, options: Mapping[str, str]) -> None:
    """Link object files into a shared library with the C compiler (`linker` in the options, default `cc`)."""
    linker = shutil.which(options.get("linker", "cc"))
    if linker is None:
        raise TargetError(
            f"no linker {options.get('linker', 'cc')!r} on this machine",
            hint="install a C compiler for the target (gcc or clang); only its linker is used",
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, code in enumerate(objects):
            path = Path(folder) / f"{i:04d}.o"
            path.write_bytes(code)
            paths.append(str(path))
        exports = Path(folder) / "exports.map"
        exports.write_text(_EXPORTS)
        flags = ["-shared", "-fPIC", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack"]
        flags += ["-Wl,--gc-sections", f"-Wl,--version-script={exports}"]
        done = subprocess.run([linker, *flags, "-o", str(output), *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"linking failed: {done.stderr.strip()[-2000:]}")
