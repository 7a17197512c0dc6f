"""The caller's arrays of an exported program, in C's words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.errors import ArtifactError, UsageError
from qcompile.ir import Graph, Grid, bits_of, storage

_KEYWORDS_TEXT = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
alignas alignof bool constexpr false nullptr static_assert thread_local true typeof
and asm catch class delete explicit export friend mutable namespace new not operator or private protected public
template this throw try typeid typename using virtual xor main
"""
_KEYWORDS = frozenset(_KEYWORDS_TEXT.split())
"""Of C and C++, which may include the header."""

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")


@dataclass(frozen=True, slots=True)
class CPort:
    """One input or output.

    Attributes:
        name: the model's name; argument: of the C function, such as `in_x`; macro: such as `MODEL_IN_X`.
        element: C type of an element.
        shape: of one sample, row-major.
    """

    name: str
    argument: str
    macro: str
    element: str
    shape: tuple[int, ...]
    grid: Grid

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def text(self) -> str:
        """Shape and meaning in one line."""
        sizes = "x".join(map(str, self.shape)) or "scalar"
        grid = self.grid
        width = f", values 0 to {(1 << bits_of(grid.dtype)) - 1}" if grid.dtype[0] == "u" else ""
        return f"{self.element}[{sizes}], real = {grid.scale!r} * (integer - {grid.zero}){width}"


def check_prefix(prefix: str) -> str:
    """A prefix that is a C identifier.  Raises UsageError."""
    if not _IDENTIFIER.fullmatch(prefix) or prefix in _KEYWORDS:
        raise UsageError(
            f"--prefix {prefix!r} is not a C identifier",
            hint="a letter, then up to 30 letters, digits and underscores, such as model or kws",
        )
    return prefix


def ports_of(graph: Graph, prefix: str) -> tuple[list[CPort], list[CPort]]:
    """Inputs and outputs; names that are equal in C's alphabet get numbers."""
    inputs = [(p.name, p.type.dtype, p.type.sample, p.grid) for p in graph.inputs]
    outputs = [(o.name, graph.type_of(o.value).dtype, graph.type_of(o.value).sample, o.grid) for o in graph.outputs]
    return _ports("in", inputs, prefix), _ports("out", outputs, prefix)


def _ports(kind: str, described: Sequence[tuple[str, str, tuple[int, ...], Grid | None]], prefix: str) -> list[CPort]:
    found: list[CPort] = []
    taken: set[str] = set()
    for i, (name, dtype, shape, grid) in enumerate(described):
        if grid is None:
            raise ArtifactError(f"{name!r} has no grid")
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        word = plain if plain not in taken else f"{plain}_{i}"
        taken.add(word)
        argument = f"{kind}_{word}"
        macro = f"{prefix}_{argument}".upper()
        found.append(CPort(name, argument, macro, f"{storage(dtype).name}_t", shape, grid))
    return found
