"""From PrimFuncs to object code, deterministically: equal functions and targets give equal bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.tirx import transform

_PASSES = (
    transform.FlattenBuffer,
    transform.StmtSimplify,
    transform.UnrollLoop,
    transform.LowerIntrin,
)
"""Lowering of functions that are already scheduled: no schedulable blocks, no packed calling convention."""


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code of one function, and the texts to inspect it by."""

    name: str
    object: bytes
    llvm: str
    assembly: str


def target_of(options: dict[str, Any]) -> Any:
    """A TVM target that is its own host, so that nothing of the building machine enters the code."""
    target = tvm.target.Target(options)
    return target.with_host(target)


def compile_function(func: Any, options: dict[str, Any]) -> Code:
    """Compile one PrimFunc to an object file that exports it as a C function under its global symbol."""
    target = target_of(options)
    name = str(func.attrs["global_symbol"])
    mod = transform.BindTarget(target)(tvm.IRModule({name: func}))
    for make in _PASSES:
        mod = make()(mod)
    library = tvm.get_global_func("target.build.llvm")(mod, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        library.write_to_file(str(path))
        code = path.read_bytes()
    return Code(name, code, library.inspect_source("ll"), library.inspect_source("asm"))


def compile_functions(funcs: Sequence[Any], options: dict[str, Any], jobs: int | None = None) -> list[Code]:
    """`compile_function` on each, several at a time."""
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        return list(pool.map(lambda func: compile_function(func, options), funcs))
