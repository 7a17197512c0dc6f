"""What a backend contributes to a program that runs without Python: see `qcompile.export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qcompile.target.program import Program


@dataclass(frozen=True)
class Deployment:
    """Kernels and parameters of one program.

    Attributes:
        parameters: C definitions of constant arrays, static.
        code: C text behind them that defines or declares `entry`; it has <stdint.h> and a word-aligned
            `PREFIX_arena` of `arena_bytes` in front of it.
        objects: file name → object file to link.
        call: text of a call of the entry, with `{ports}` where the caller's pointers stand.
        arena_bytes, arena_alignment: working memory, all that kernels read over included.
        parameter_bytes: of the constant arrays, likewise.
        object_bytes: what the objects take in memory, code and their own constants.
        undefined: symbols the objects need, by name; normally none.
        compiler: the command for the target, as a default of the build files.
        target: in words, for comments.
    """

    parameters: str
    code: str
    objects: Mapping[str, bytes]
    call: str
    arena_bytes: int
    arena_alignment: int
    parameter_bytes: int
    object_bytes: int
    undefined: tuple[str, ...]
    compiler: str
    target: str


@runtime_checkable
class Deployable(Protocol):
    """A backend whose programs can be exported."""

    def deploy(self, program: Program, prefix: str) -> Deployment:
        """The program on one thread; every name that a linker sees begins with `prefix`.

        A kernel without a chosen variant gets the implementation whose parameters are the smallest.

        Raises:
            TargetError: a tool for the target is missing.
        """
