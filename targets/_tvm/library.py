"""A program as one native library: one C function per distinct kernel, and an entry function that calls
them in order.

    int qcompile_run(params, arena, inputs..., outputs...)

Every parameter is a pointer; `params` is the packed blob, `arena` the working memory.  Nothing else is
needed: no allocation, no packed call.  Loops worth sharing go through the pointer
`__TVMBackendParallelLaunch`, which `targets._tvm.threads` sets.
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
from targets._tvm.recipes import Recipe
from targets._tvm.runner import DESCRIPTION, ENTRY, LIBRARY, SLACK, aligned


@dataclass(frozen=True)
class Assembled:
    """Everything a library is made of."""

    functions: tuple[Any, ...]
    constants: tuple[tuple[int, Recipe], ...]
    params_bytes: int
    arena_bytes: int


class FunctionTable:
    """Distinct functions, each under one symbol; layers of equal geometry share their code.

    Args:
        prefix: of the symbols, which are numbered.
        by_content: make the symbol of what the function does instead, so that equal functions of several tables
            have equal names, and `compile_functions` compiles them once.
    """

    def __init__(self, prefix: str = "qk", *, by_content: bool = False) -> None:
        self._prefix, self._by_content = prefix, by_content
        self._found: dict[int, list[tuple[Any, str]]] = {}
        self.functions: list[Any] = []

    def symbol(self, func: Any) -> str:
        digest = tvm_ffi.structural_hash(func)
        bucket = self._found.setdefault(digest, [])
        for known, symbol in bucket:
            if tvm_ffi.structural_equal(known, func):
                return symbol
        symbol = f"{self._prefix}{len(self.functions)}"
        if self._by_content:
            symbol = f"{self._prefix}_{digest % (1 << 64):016x}{f'_{len(bucket)}' if bucket else ''}"
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


def assemble(
    program: Program, emitted: Sequence[Emitted], entry: str = ENTRY, table: FunctionTable | None = None
) -> Assembled:
    """Lay out parameters and scratch memory and write the entry function; `table` names the kernels."""
    table, blob = table or FunctionTable(by_content=True), Blob()
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
    functions = (*table.functions, b.function(entry))
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
    """Kernels to be timed alone: `bench<i>(control, arguments...)` calls kernel i again and again.

    `control` is int32: how many calls, how many copies of its arguments to go through in turn, which of them to begin
    with, and for each argument the bytes from one copy to the next.
    """

    library: Path
    symbols: tuple[str, ...]


def build_bench(emitted: Sequence[Emitted], options: Mapping[str, str], directory: Path) -> Bench:
    """One library with a repeating caller for each kernel."""
    table = FunctionTable(by_content=True)
    callers = []
    for i, one in enumerate(emitted):
        symbol = table.symbol(one.func)
        b = Builder()
        control = b.pointer("control", "int32")
        pointers = [b.pointer(f"a{n}", "uint8") for n in range(len(one.arguments))]
        with b.loop(b.load(control, 0)) as call:
            copy = b.let((b.load(control, 2) + call) % b.load(control, 1))
            starts = [copy * b.load(control, 3 + n) for n in range(len(pointers))]
            addresses = [tir.address_of(b.load(p, at)) for p, at in zip(pointers, starts, strict=True)]
            b.evaluate(tir.call_extern("int32", symbol, *addresses))
        callers.append(b.function(f"bench{i}"))
    codes = compile_functions([*table.functions, *callers], options)
    link([code.object for code in codes], directory / LIBRARY, options)
    return Bench(directory / LIBRARY, tuple(f"bench{i}" for i in range(len(emitted))))


def value_bytes(kernel: Kernel, program: Program, argument: Argument) -> Array:
    """Memory for one argument of a kernel that runs alone: packed parameters, or noise of the buffer's size."""
    match argument:
        case Constant(_, array):
            return np.frombuffer(array.tobytes(), dtype=np.uint8)
        case Value(name):
            # Multiplying zeros takes less power, and so less time, than multiplying data.
            size = program.buffers[name].layout.bytes
            return np.random.default_rng(0).integers(0, 16, size, dtype=np.uint8)
        case Scratch(size):
            return np.zeros(size, dtype=np.uint8)
