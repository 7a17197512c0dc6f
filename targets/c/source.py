"""A program as C99 text: kernels, and an entry function that calls them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompile.ir import Array, storage
from qcompile.target.program import Program
from targets._tvm.context import Argument, Constant, Emitted, Scratch, Value
from targets._tvm.library import Blob, FunctionTable
from targets._tvm.runner import SLACK, aligned
from targets.c.printer import HELPERS, c_type, parameter_types, print_function

_WORD = 4
"""Alignment of everything in the arena, bytes."""


@dataclass(frozen=True)
class Call:
    """One call of a kernel: its name, and what each pointer of which type points at."""

    symbol: str
    types: tuple[str, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Source:
    """A translated program.

    Attributes:
        functions: definitions of the distinct kernels.
        calls: in execution order.
        inputs, outputs: C types of the caller's arrays.
        scratch: offset into the arena of memory that kernels use while they run.
        arena_bytes: all of the working memory; kernels neither read nor write behind it.
    """

    program: Program
    functions: tuple[str, ...]
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scratch: int
    arena_bytes: int

    @property
    def ports(self) -> str:
        """The caller's arrays as parameters, behind others."""
        ins = [f"const {t} *in{i}" for i, t in enumerate(self.inputs)]
        return ", ".join([*ins, *(f"{t} *out{i}" for i, t in enumerate(self.outputs))])

    def body(self, constant: Callable[[Constant], str]) -> list[str]:
        """The calls, where `constant` says how packed parameters are named; `arena` is a `uint8_t *`."""
        lines = []
        for call in self.calls:
            places = [self._place(a, t, constant) for a, t in zip(call.arguments, call.types, strict=True)]
            lines.append(f"    {call.symbol}({', '.join(places)});")
        return lines

    def _place(self, argument: Argument, type_: str, constant: Callable[[Constant], str]) -> str:
        match argument:
            case Constant():
                return constant(argument)
            case Value(name):
                buffer = self.program.buffers[name]
                if buffer.place != "arena":
                    return f"{'in' if buffer.place == 'input' else 'out'}{buffer.offset}"
                at = buffer.offset
            case Scratch():
                at = self.scratch
        # Through void *: the arena is aligned for every type, which the compiler cannot know.
        return f"({type_})(void *)(arena + {at})"


def translate(program: Program, emitted: Sequence[Emitted]) -> Source:
    """Print the kernels of a program."""
    table = FunctionTable()
    calls = [Call(table.symbol(e.func), tuple(parameter_types(e.func)), e.arguments) for e in emitted]
    functions = tuple(print_function(f, str(f.attrs["global_symbol"])) for f in table.functions)
    graph = program.graph
    scratch = max((a.bytes for e in emitted for a in e.arguments if isinstance(a, Scratch)), default=0)
    offset = -(-program.arena_bytes // _WORD) * _WORD
    return Source(
        program, functions, tuple(calls),
        tuple(c_type(storage(p.type.dtype).name) for p in graph.inputs),
        tuple(c_type(storage(graph.type_of(o.value).dtype).name) for o in graph.outputs),
        offset, max(_WORD, offset + -(-scratch // _WORD) * _WORD),
    )  # fmt: skip


def kernels_text(source: Source) -> str:
    return "\n".join(["#include <stdint.h>\n", HELPERS, *source.functions])


def library_text(source: Source, entry: str) -> tuple[str, Blob]:
    """The file of a shared library, whose entry takes the parameters as one blob, and that blob."""
    blob = Blob()

    def constant(argument: Constant) -> str:
        element = c_type(argument.array.dtype.name)
        return f"(const {element} *)(const void *)(params + {blob.add(argument)})"

    calls = source.body(constant)
    head = f"int {entry}(const uint8_t *params, uint8_t *arena, {source.ports});"
    lines = [
        kernels_text(source),
        head,
        head[:-1],
        "{",
        "    (void)params;",
        "    (void)arena;",
        *calls,
        "    return 0;",
    ]
    return "\n".join([*lines, "}", ""]), blob


def params_bytes(blob: Blob) -> int:
    """Size of the blob in memory, the room behind it included."""
    return aligned(blob.size) + SLACK


def bench_text(emitted: Sequence[Emitted]) -> tuple[str, list[str]]:
    """Kernels to be timed alone, as `targets._tvm.library.Bench` defines, and the names of their callers."""
    table = FunctionTable()
    callers, names = [], []
    for i, one in enumerate(emitted):
        types = parameter_types(one.func)
        symbol, name = table.symbol(one.func), f"bench{i}"
        pointers = ", ".join(f"char *p{n}" for n in range(len(types)))
        places = ", ".join(f"({t})(void *)(p{n} + copy * control[{3 + n}])" for n, t in enumerate(types))
        # Without the barrier a compiler may see that every turn does the same, and take only one.
        callers.append(
            f"int {name}(const int32_t *control, {pointers})\n{{\n"
            f"    for (int32_t i = 0; i < control[0]; ++i) {{\n"
            f"        const int32_t copy = (control[2] + i) % control[1];\n        {symbol}({places});\n"
            '        __asm__ volatile("" ::: "memory");\n    }\n    return 0;\n}\n'
        )
        names.append(name)
    functions = [print_function(f, str(f.attrs["global_symbol"])) for f in table.functions]
    return "\n".join(["#include <stdint.h>\n", HELPERS, *functions, *callers]), names


def unique_constants(source: Source) -> dict[str, Array]:
    """Blob key → array, in the order of first use; equal arrays once."""
    found: dict[str, Array] = {}
    for call in source.calls:
        for argument in call.arguments:
            if isinstance(argument, Constant):
                found.setdefault(Blob.key(argument.array), argument.array)
    return found
