"""From a PrimFunc of the statement builder to one C99 function.

Signed shifts to the left go through unsigned integers and nothing relies on overflow, so that the text has one
meaning under every compiler.  What C leaves to the implementation and the text uses: `>>` of a negative number
shifts in the sign, and a conversion to a narrower signed type keeps the low bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx as tir
from tvm.ir.expr import TensorLoad

from qcompile.errors import InternalError

HELPERS = """\
static inline int32_t q_min32(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t q_max32(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int64_t q_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t q_max64(int64_t a, int64_t b) { return a > b ? a : b; }
"""
"""What printed functions call."""

_TYPES = {"bool": "int", **{f"{s}int{bits}": f"{s}int{bits}_t" for s in ("", "u") for bits in (8, 16, 32, 64)}}

BINARY: Mapping[type, str] = {
    tir.Add: "+", tir.Sub: "-", tir.Mul: "*", tir.Mod: "%", tir.Div: "/", tir.FloorDiv: "/", tir.FloorMod: "%",
    tir.EQ: "==", tir.NE: "!=", tir.LT: "<", tir.LE: "<=", tir.GT: ">", tir.GE: ">=", tir.And: "&&", tir.Or: "||",
    tir.RShift: ">>", tir.BitwiseAnd: "&", tir.BitwiseOr: "|", tir.BitwiseXor: "^",
}  # fmt: skip
"""Operators.  Division is of indices only, which are never negative, so floor and truncation agree."""

_LIMIT = 1 << 31


def c_type(dtype: str) -> str:
    """The C type of a scalar dtype.  Raises InternalError for vectors and floating point."""
    if dtype not in _TYPES:
        raise InternalError(f"no C type for {dtype}")
    return _TYPES[dtype]


def parameter_types(func: Any) -> list[str]:
    """`const uint8_t *` or `int32_t *` of every pointer parameter: const where the function only reads."""
    stored: set[str] = set()

    def visit(stmt: Any) -> None:
        if isinstance(stmt, tir.BufferStore):
            stored.add(str(stmt.buffer.name))

    walk(func.body, visit)
    # The header declares one buffer for each parameter, in order.
    buffers = [s.buffer for s in func.body.seq if isinstance(s, tir.DeclBuffer)]
    return [f"{'' if str(b.name) in stored else 'const '}{c_type(str(b.dtype))} *" for b in buffers]


def walk(stmt: Any, visit: Callable[[Any], None]) -> None:
    """Call `visit` on a statement and on every one inside it."""
    visit(stmt)
    if isinstance(stmt, tir.SeqStmt):
        for inner in stmt.seq:
            walk(inner, visit)
    elif isinstance(stmt, tir.For):
        walk(stmt.body, visit)
    elif isinstance(stmt, tir.IfThenElse):
        walk(stmt.then_case, visit)


class Printer:
    """Prints one function."""

    def __init__(self, func: Any, name: str) -> None:
        self._func = func
        self._name = name
        self._lines: list[str] = []
        self._scalars: set[str] = set()
        self._uses: Counter[str] = Counter()

    def text(self) -> str:
        """The definition, internal to its file."""
        body = self._block(self._func.body)
        types = parameter_types(self._func)
        names = [str(s.buffer.name) for s in self._func.body.seq if isinstance(s, tir.DeclBuffer)]
        parameters = ", ".join(f"{t}restrict {n}" for t, n in zip(types, names, strict=True))
        unused = [f"    (void){n};" for n in names if not self._uses[n]]
        return "\n".join([f"static void {self._name}({parameters})", "{", *unused, *body, "}"]) + "\n"

    def _block(self, stmt: Any) -> list[str]:
        """The lines of a statement, indented once; names that nothing reads are left out."""
        lines: list[str] = []
        seq = list(stmt.seq) if isinstance(stmt, tir.SeqStmt) else [stmt]
        # Backwards, so that a value's readers are known when it is reached.
        for one in reversed(seq):
            lines = self._statement(one) + lines
        return [f"    {line}" for line in lines]

    def _statement(self, s: Any) -> list[str]:
        if isinstance(s, tir.SeqStmt):
            return [line[4:] for line in self._block(s)]
        if isinstance(s, tir.BufferStore):
            return [f"{self._element(s.buffer, s.indices)} = {self._expr(s.value)};"]
        if isinstance(s, tir.Bind):
            name = str(s.var.name)
            if not self._uses[name]:
                return []
            return [f"const {c_type(str(s.var.ty.dtype))} {name} = {self._expr(s.value)};"]
        if isinstance(s, tir.For):
            name = str(s.loop_var.name)
            body = self._block(s.body)
            head = f"for (int32_t {name} = {self._control(s.min)}; {name} < {self._control(s.extent)}; ++{name}) {{"
            return [head, *body, "}"]
        if isinstance(s, tir.IfThenElse) and s.else_case is None:
            body = self._block(s.then_case)
            return [f"if ({self._control(s.condition)}) {{", *body, "}"]
        if isinstance(s, tir.AllocBuffer):
            (size,) = s.buffer.shape
            return [f"{c_type(str(s.buffer.dtype))} {s.buffer.name}[{int(size)}];"]
        if isinstance(s, tir.DeclBuffer | tir.Return):
            return []
        if isinstance(s, tir.Evaluate) and isinstance(s.value, tir.IntImm):
            return []
        raise InternalError(f"{self._name}: no C for the statement {type(s).__name__}")

    def _control(self, e: Any) -> str:
        """An expression that decides what runs."""
        return self._expr(e)

    def _element(self, buffer: Any, indices: Any) -> str:
        (index,) = indices
        name = str(buffer.name)
        self._uses[name] += 1
        return f"{name}[{self._expr(index)}]"

    def _expr(self, e: Any) -> str:
        if isinstance(e, tir.IntImm):
            return literal(int(e.value), str(e.ty.dtype))
        if isinstance(e, tir.Var):
            self._uses[str(e.name)] += 1
            return str(e.name)
        if isinstance(e, TensorLoad):
            return self._element(e.source, e.indices)
        if isinstance(e, tir.Cast):
            return f"({c_type(str(e.ty.dtype))}){self._expr(e.value)}"
        if type(e) in BINARY:
            return f"({self._expr(e.a)} {BINARY[type(e)]} {self._expr(e.b)})"
        if isinstance(e, tir.Min | tir.Max):
            width = 64 if str(e.ty.dtype) == "int64" else 32
            which = "min" if isinstance(e, tir.Min) else "max"
            return f"({c_type(str(e.ty.dtype))})q_{which}{width}({self._expr(e.a)}, {self._expr(e.b)})"
        if isinstance(e, tir.Select):
            return self._choice(e.condition, e.true_value, e.false_value)
        if isinstance(e, tir.Not):
            return f"(!{self._expr(e.a)})"
        if isinstance(e, tir.Broadcast) and int(e.lanes) == 1:
            return self._expr(e.value)
        if isinstance(e, tir.LShift):
            kind = str(e.ty.dtype)
            unsigned = c_type("u" + kind.removeprefix("u"))
            return f"({c_type(kind)})(({unsigned}){self._expr(e.a)} << {self._expr(e.b)})"
        operator = getattr(getattr(e, "op", None), "name", type(e).__name__).rpartition(".")[2]
        if operator == "if_then_else":
            return self._choice(*e.args)
        raise InternalError(f"{self._name}: no C for the expression {operator}")

    def _choice(self, condition: Any, then: Any, otherwise: Any) -> str:
        return f"({self._expr(condition)} ? {self._expr(then)} : {self._expr(otherwise)})"


def literal(value: int, dtype: str) -> str:
    """An integer constant; the smallest of a type has no literal of its own."""
    if dtype == "int64":
        return f"INT64_C({value})" if value > -(1 << 63) else "INT64_MIN"
    if value == -_LIMIT:
        return "INT32_MIN"
    return f"({value})" if value < 0 else str(value)


def print_function(func: Any, name: str) -> str:
    """C99 text of a kernel as `static void name(pointers…)`; needs <stdint.h> and HELPERS."""
    return Printer(func, name).text()
