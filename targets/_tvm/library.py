"""A program as one native library: one C function per distinct kernel, and an entry function that calls
them in order.

    int qcompile_run(params, arena, inputs..., outputs...)

Every parameter is a pointer; `params` is the packed blob, `arena` the working memory.  Nothing else is
needed: no allocation, no packed call.  Loops worth sharing go through the pointer
`__TVMBackendParallelLaunch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx as tir

from qcompile.ir import Array
from qcompile.target.program import Kernel, Program
from targets._tvm.build import Code, compile_functions, link
from targets._tvm.builder import Builder
from targets._tvm.context import Argument, Constant, Emitted, Scratch, Value
from targets._tvm.packing import Recipe
from targets._tvm.runner import DESCRIPTION, ENTRY, LIBRARY, SLACK, aligned


@dataclass(frozen=True)
class Assembled:
    """Everything a library is made of."""

    functions: tuple[Any, ...]
    constants: tuple[tuple[int, Recipe], ...]
    params_bytes: int
    arena_bytes: int


class FunctionTable:
    """Distinct functions, each under one symbol; layers of equal geometry share their code."""

    def __init__(self, prefix: str = "qk") -> None:
        self._prefix = prefix
        self._found: dict[int, list[tuple[Any, str]]] = {}
        self.functions: list[Any] = []

    def symbol(self, func: Any) -> str:
        bucket = self._found.setdefault(tvm_ffi.structural_hash(func), [])
        for known, symbol in bucket:
            if tvm_ffi.structural_equal(known, func):
                return symbol
        symbol = f"{self._prefix}{len(self.functions)}"
        bucket.append((func, symbol))
        self.functions.append(func.with_attr("global_symbol", symbol))
        return symbol


class Blob:
    """Packed parameters, each array once, aligned."""

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {}
        self.placed: list[tuple[int, Recipe]] = []
        self.size = 0

    @staticmethod
    def key(array: Array) -> str:
        return hashlib.sha256(f"{array.dtype}".encode() + array.tobytes()).hexdigest()

    def add(self, constant: Constant) -> int:
        key = self.key(constant.array)
        if key not in self._offsets:
            self._offsets[key] = self.size
            self.placed.append((self.size, constant.recipe))
            self.size += aligned(constant.array.nbytes)
        return self._offsets[key]


def assemble(program: Program, emitted: Sequence[Emitted]) -> Assembled:
    """Lay out parameters and scratch memory and write the entry function."""
    table, blob = FunctionTable(), Blob()
    scratch = max((a.bytes for e in emitted for a in e.arguments if isinstance(a, Scratch)), default=0)
    scratch_offset = aligned(program.arena_bytes) + SLACK
    calls = tuple((table.symbol(e.func), e) for e in emitted)
    b = Builder()
    params, arena = b.pointer("params", "uint8"), b.pointer("arena", "uint8")
    inputs = [b.pointer(f"input{i}", "uint8") for i in range(len(program.graph.inputs))]
    outputs = [b.pointer(f"output{i}", "uint8") for i in range(len(program.graph.outputs))]
    callers = {"input": inputs, "output": outputs}

    def address(argument: Argument) -> Any:
        match argument:
            case Constant():
                where = (params, blob.add(argument))
            case Value(name):
                buffer = program.buffers[name]
                inside = buffer.place == "arena"
                where = (arena, buffer.offset) if inside else (callers[buffer.place][buffer.offset], 0)
            case Scratch():
                where = (arena, scratch_offset)
        return tir.address_of(b.load(*where))

    for symbol, one in calls:
        b.evaluate(tir.call_extern("int32", symbol, *[address(a) for a in one.arguments]))
    functions = (*table.functions, b.function(ENTRY))
    arena_bytes = scratch_offset + aligned(scratch) + SLACK
    # Vector loads may run over the end of the last constant.
    return Assembled(functions, tuple(blob.placed), blob.size + SLACK, arena_bytes)


def write_library(assembled: Assembled, options: Mapping[str, str], directory: Path) -> list[Code]:
    """Compile and link into `directory`: the library, and how to pack the parameters it reads."""
    directory.mkdir(parents=True, exist_ok=True)
    codes = compile_functions(assembled.functions, options)
    link([code.object for code in codes], directory / LIBRARY, options)
    described = {
        "entry": ENTRY,
        "arena_bytes": assembled.arena_bytes,
        "params_bytes": assembled.params_bytes,
        "constants": [[offset, *recipe.to_json()] for offset, recipe in assembled.constants],
    }
    (directory / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
    return codes


@dataclass(frozen=True)
class Bench:
    """Kernels to be timed alone: `bench<i>(repeats, arguments...)` calls kernel i again and again."""

    library: Path
    symbols: tuple[str, ...]


def build_bench(emitted: Sequence[Emitted], options: Mapping[str, str], directory: Path) -> Bench:
    """One library with a repeating caller for each kernel."""
    table = FunctionTable()
    callers = []
    for i, one in enumerate(emitted):
        symbol = table.symbol(one.func)
        b = Builder()
        repeats = b.pointer("repeats", "int32")
        pointers = [b.pointer(f"a{n}", "uint8") for n in range(len(one.arguments))]
        with b.loop(b.load(repeats, 0)):
            b.evaluate(tir.call_extern("int32", symbol, *[tir.address_of(b.load(p, 0)) for p in pointers]))
        callers.append(b.function(f"bench{i}"))
    codes = compile_functions([*table.functions, *callers], options)
    link([code.object for code in codes], directory / LIBRARY, options)
    return Bench(directory / LIBRARY, tuple(f"bench{i}" for i in range(len(emitted))))


def value_bytes(kernel: Kernel, program: Program, argument: Argument) -> Array:
    """Memory for one argument of a kernel that runs alone: packed parameters, or zeros of the buffer's
    size."""
    match argument:
        case Constant(_, array):
            return np.frombuffer(array.tobytes() + bytes(SLACK), dtype=np.uint8).copy()
        case Value(name):
            return np.zeros(program.buffers[name].layout.bytes + SLACK, dtype=np.uint8)
        case Scratch(size):
            return np.zeros(size + SLACK, dtype=np.uint8)
