"""From PrimFuncs to machine code, deterministically: equal functions and targets give equal bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm.tirx import transform

from qcompile.errors import InternalError
from targets._tvm.cross import find_linker, run_compiler
from targets._tvm.float_scan import tir_float_operations

_PASSES = (
    transform.FlattenBuffer,
    transform.StmtSimplify,
    transform.UnrollLoop,
    transform.LowerIntrin,
)
"""Lowering of functions that are already scheduled: no schedulable blocks, no packed calling convention."""

_EXPORTS = "{ global: qcompile_run; qcompile_quantize; bench*; __TVMBackendParallelLaunch; local: *; };\n"
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


def compile_function(func: Any, options: Mapping[str, str], *, floats: bool = False) -> Code:
    """Compile one PrimFunc to an object file that exports it as a C function under its global symbol."""
    name = str(func.attrs["global_symbol"])
    if not floats and (found := tir_float_operations(func)):
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


_KEPT = 1024
"""Most compiled functions a process keeps."""

_compiled: dict[tuple[str, str], tuple[Any, Code]] = {}


def compile_functions(funcs: Sequence[Any], options: Mapping[str, str]) -> list[Code]:
    """`compile_function` on each; what this process compiled before is taken from memory.

    A kernel is compiled to be timed, to be built into one plan after another, and to be searched for floating
    point; the code is the same each time.
    """
    settings = repr(sorted(options.items()))
    found = []
    for func in funcs:
        key = (settings, str(func.attrs["global_symbol"]))
        known = _compiled.get(key)
        if known is None or not tvm_ffi.structural_equal(known[0], func):
            known = (func, compile_function(func, options))
            if len(_compiled) >= _KEPT:
                forget_compiled()
            _compiled[key] = known
        found.append(known[1])
    return found


def forget_compiled() -> None:
    """Compile everything anew from now on."""
    _compiled.clear()


def link(objects: Sequence[bytes], output: Path, options: Mapping[str, str]) -> None:
    """Link object files into a shared library with the C compiler (`linker` in the options, default `cc`)."""
    linker = find_linker(options)
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
        run_compiler(
            [*linker, *flags, "-o", str(output), *paths, *options.get("link_flags", "").split()],
            f"the library {output.name}",
        )
