"""A program as one C file: parameters as typed arrays, so that it means the same on every machine."""

from __future__ import annotations

from qcompile.target.deployment import Deployment
from targets._tvm.context import Constant
from targets._tvm.deploy import constant_lines
from targets._tvm.library import Blob
from targets.c.printer import HELPERS, c_type
from targets.c.source import Source, unique_constants

_WORD = 4


def portable(source: Source, prefix: str) -> Deployment:
    """The text of a translated program; all its names are internal to its file."""
    constants = unique_constants(source)
    names = {key: f"p{i}" for i, key in enumerate(constants)}

    def constant(argument: Constant) -> str:
        return names[Blob.key(argument.array)]

    parameters = [
        line for key, array in constants.items() for line in constant_lines(c_type(array.dtype.name), names[key], array)
    ]
    body = source.body(constant)
    code = [
        HELPERS, *source.functions,
        f"static void q_run(uint8_t *arena, {source.ports})", "{", "    (void)arena;", *body, "}", "",
    ]  # fmt: skip
    return Deployment(
        parameters="\n".join(parameters),
        code="\n".join(code),
        objects={},
        call=f"q_run((uint8_t *){prefix}_arena, {{ports}})",
        arena_bytes=source.arena_bytes,
        arena_alignment=_WORD,
        parameter_bytes=sum(-(-array.nbytes // _WORD) * _WORD for array in constants.values()),
        object_bytes=0,
        undefined=(),
        compiler="cc",
        target="any C99 compiler with 32-bit int",
    )
