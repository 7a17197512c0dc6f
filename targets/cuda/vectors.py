"""From a kernel of vectors to one for threads: every lane a scalar, memory touched 16 or 4 bytes at a time.

The shared kernels compute vectors of neighbouring elements.  Here a thread computes one such vector: bytes are loaded
as words, taken apart, computed one by one in registers, and put together again.  Which accesses are aligned is
proved from the index expressions; `Refused` says that one of them is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx as tir
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from targets._tvm.builder import Expr, cast, const, lanes_of
from targets.cuda.device import joined, value_of

_WORD, _GRANULE = 4, 16
_HALF = 32
_LIMIT = 1 << 31


class Refused(Exception):  # noqa: N818 (it is no error: the kernel stays scalar)
    """A vector that no aligned word can hold, or that is computed in a way which is not known here."""


class Scalarizer:
    """Rewrites one function.

    Args:
        alignments: what divides the address of each pointer parameter, in order.

    Attributes:
        accesses: vectors that are loaded or stored as words.
    """

    def __init__(self, alignments: Sequence[int]) -> None:
        self._given = iter(alignments)
        self._aligned: dict[Any, int] = {}
        self._vectors: dict[Any, list[Expr]] = {}
        self._bytes: dict[Any, tuple[Expr, int]] = {}
        self._locals: dict[Any, Any] = {}
        self._known = Analyzer()
        self._before: list[Any] = []
        self.accesses = 0
        self._count = 0

    def function(self, func: Any) -> Any:
        """The function without vectors.  Raises Refused."""
        made = tir.PrimFunc(func.params, tir.SeqStmt(self._statements(func.body)), ret_type=func.ret_type)
        return made.with_attrs(dict(func.attrs))

    # Statements.

    def _statements(self, s: Any) -> list[Any]:
        if isinstance(s, tir.SeqStmt):
            return [made for one in s.seq for made in self._statements(one)]
        made = self._statement(s)
        before, self._before = self._before, []
        return before + made

    def _body(self, s: Any) -> Any:
        outer, self._before = self._before, []
        made = self._statements(s)
        self._before = outer
        return made[0] if len(made) == 1 else tir.SeqStmt(made)

    def _statement(self, s: Any) -> list[Any]:
        if isinstance(s, tir.DeclBuffer):
            self._aligned[s.buffer] = next(self._given)
        elif isinstance(s, tir.For):
            self._known.bind(s.loop_var, tvm.ir.Range(const(0), s.extent))
            return [tir.For(s.loop_var, s.min, s.extent, s.kind, self._body(s.body))]
        elif isinstance(s, tir.IfThenElse):
            return [tir.IfThenElse(s.condition, self._body(s.then_case), None)]
        elif isinstance(s, tir.AllocBuffer):
            return [self._alloc(s)]
        elif isinstance(s, tir.Bind):
            return self._bind(s)
        elif isinstance(s, tir.BufferStore):
            return self._store(s)
        return [s]

    def _alloc(self, s: Any) -> Any:
        scalar, _, lanes = str(s.buffer.dtype).partition("x")
        if not lanes:
            return s
        (size,) = (int(n) for n in s.buffer.shape)
        buffer = tir.decl_buffer((size * int(lanes),), scalar, name=str(s.buffer.name), scope=s.buffer.scope())
        self._locals[s.buffer] = (buffer, int(lanes))
        return tir.AllocBuffer(buffer)

    def _bind(self, s: Any) -> list[Any]:
        if lanes_of(s.var) == 1:
            if str(s.var.ty.dtype) == "int32":
                self._known.bind(s.var, s.value)
            return [s]
        values = self._lanes(s.value)
        if isinstance(s.value, tir.Broadcast):
            self._vectors[s.var] = [self._named(values[0])] * len(values)
        else:
            self._vectors[s.var] = [self._named(value) for value in values]
        return []

    def _store(self, s: Any) -> list[Any]:
        (index,) = s.indices
        if s.buffer in self._locals:
            buffer, lanes = self._locals[s.buffer]
            return [tir.BufferStore(buffer, v, [index * lanes + k]) for k, v in enumerate(self._lanes(s.value))]
        values = self._lanes(s.value)
        if not isinstance(index, tir.Ramp):
            return [tir.BufferStore(s.buffer, values[0], [index])]
        size = _item_bytes(s.buffer)
        width = self._width(s.buffer, index.base, len(values) * size)
        base = self._let(index.base)
        if width is None or (width == _WORD and size == _WORD):
            return [tir.BufferStore(s.buffer, v, [base + k]) for k, v in enumerate(values)]
        words = values if size == _WORD else [self._word(values[k : k + _WORD]) for k in range(0, len(values), _WORD)]
        made, per = [], width // _WORD
        for first in range(0, len(words), per):
            to = _address(s.buffer, base + first * (_WORD // size))
            name = "q_put" if per == 1 else "q_put16"
            made.append(tir.Evaluate(value_of(name, to, *words[first : first + per])))
        return made

    def _word(self, values: list[Expr]) -> Expr:
        """Four bytes as a word."""
        places = [self._bytes[v] for v in values if isinstance(v, tir.Var) and v in self._bytes]
        if len(places) == _WORD and all(p[0].same_as(places[0][0]) and p[1] == i for i, p in enumerate(places)):
            return places[0][0]
        if all(isinstance(v, tir.IntImm) for v in values):
            return const(_signed(sum(int(v.value) << (8 * k) for k, v in enumerate(values))))
        return self._let(joined(self._let, values))

    # Expressions.

    def _named(self, value: Expr) -> Expr:
        return value if isinstance(value, tir.Var) else self._let(value)

    def _let(self, value: Expr) -> Expr:
        self._count += 1
        var = tir.Var(f"x{self._count}", value.ty)
        self._before.append(tir.Bind(var, value))
        return var

    def _lanes(self, e: Any) -> list[Expr]:
        """The scalars of a vector; a scalar stands for itself."""
        if isinstance(e, tir.Shuffle):
            values = [v for vector in e.vectors for v in self._lanes(vector)]
            return [values[int(i)] for i in e.indices]
        count = lanes_of(e)
        if count == 1:
            return [e]
        if isinstance(e, tir.Var):
            return self._vectors[e]
        if isinstance(e, tir.Broadcast):
            return [e.value] * count
        if isinstance(e, tir.Ramp):
            return [e.base + k * e.stride for k in range(count)]
        if isinstance(e, TensorLoad):
            return self._load(e)
        scalar = str(e.ty.dtype).partition("x")[0]
        if isinstance(e, tir.Cast):
            return [cast(scalar, v) for v in self._lanes(e.value)]
        if isinstance(e, tir.Select):
            parts = (self._lanes(v) for v in (e.condition, e.true_value, e.false_value))
            return [tir.Select(*three) for three in zip(*parts, strict=True)]
        if isinstance(e, tir.RShift) and (halves := self._halves(e)):
            return halves
        if hasattr(e, "a"):
            return [type(e)(a, b) for a, b in zip(self._lanes(e.a), self._lanes(e.b), strict=True)]
        operator = str(getattr(getattr(e, "op", None), "name", type(e).__name__)).rpartition(".")[2]
        if operator == "reinterpret":
            return self._reinterpret(e.args[0], scalar)
        if operator == "if_then_else":
            return self._guarded(*e.args)
        raise Refused(f"the vector {operator}")

    def _halves(self, e: Any) -> list[Expr] | None:
        """Sign-extended 32-bit halves of lanes of 64 bits, which is how vectors are widened: plain casts."""
        if not _is_half(e.b):
            return None
        if _is_reinterpret(e.a):
            return [cast("int64", v) for v in self._lanes(e.a.args[0])[1::2]]
        if isinstance(e.a, tir.LShift) and _is_half(e.a.b) and _is_reinterpret(e.a.a):
            return [cast("int64", v) for v in self._lanes(e.a.a.args[0])[::2]]
        return None

    def _reinterpret(self, x: Any, scalar: str) -> list[Expr]:
        values = self._lanes(x)
        before = str(values[0].ty.dtype)
        if (before, scalar) == ("int64", "int32"):
            bits = const(_HALF, "int64")
            return [cast("int32", half) for v in values for half in (v, tir.shift_right(v, bits))]
        if (before, scalar) == ("int32", "int64"):
            low = [tir.bitwise_and(cast("int64", v), const((1 << _HALF) - 1, "int64")) for v in values[::2]]
            high = [tir.shift_left(cast("int64", v), const(_HALF, "int64")) for v in values[1::2]]
            return [tir.bitwise_or(*pair) for pair in zip(low, high, strict=True)]
        raise Refused(f"{before} as {scalar}")

    def _guarded(self, condition: Any, then: Any, otherwise: Any) -> list[Expr]:
        """What is read only where a condition holds; elsewhere a constant."""
        if isinstance(then, tir.Broadcast) and isinstance(otherwise, tir.Broadcast):
            return [tir.if_then_else(condition, then.value, otherwise.value)] * lanes_of(then)
        if not (isinstance(then, TensorLoad) and isinstance(otherwise, tir.Broadcast)):
            raise Refused("a choice of other than an element and a constant")
        return self._load(then, condition, otherwise.value)

    def _load(self, e: Any, condition: Any = None, fill: Any = None) -> list[Expr]:
        (index,) = e.indices
        if e.source in self._locals:
            buffer, lanes = self._locals[e.source]
            return [tir.BufferLoad(buffer, [index * lanes + k]) for k in range(lanes)]
        if not isinstance(index, tir.Ramp):
            return [tir.BufferLoad(e.source, [i]) for i in self._lanes(index)]
        size, count = _item_bytes(e.source), lanes_of(e)
        width = self._width(e.source, index.base, count * size)
        base = self._let(index.base)
        if width is None or (size == _WORD and width == _WORD):
            found = [tir.BufferLoad(e.source, [base + k]) for k in range(count)]
            return found if condition is None else [tir.if_then_else(condition, v, fill) for v in found]
        step, words = width // size, []
        empty = None if fill is None else const(_signed(int(fill.value) * (0x01010101 if size == 1 else 1)))
        for first in range(0, count, step):
            words += self._words(_address(e.source, base + first), width, condition, empty)
        if size == _WORD:
            return words
        found = []
        for k in range(count):
            word, byte = words[k // _WORD], k % _WORD
            value = tir.shift_right(word, const(byte * 8)) if byte else word
            found.append(self._let(cast(str(e.source.dtype), value)))
            self._bytes[found[-1]] = (word, byte)
        return found

    def _words(self, address: Any, width: int, condition: Any, empty: Any) -> list[Expr]:
        """One or four words from an address."""
        if width == _WORD:
            word = value_of("q_word", address)
            return [self._let(word if condition is None else tir.if_then_else(condition, word, empty))]
        self._count += 1
        four = tir.decl_buffer((_WORD,), "int32", name=f"four{self._count}", scope="local")
        self._before.append(tir.AllocBuffer(four))
        load = tir.Evaluate(value_of("q_load16", _address(four, const(0)), address))
        if condition is not None:
            self._before += [tir.BufferStore(four, empty, [const(k)]) for k in range(_WORD)]
            load = tir.IfThenElse(condition, load, None)
        self._before.append(load)
        return [self._let(tir.BufferLoad(four, [const(k)])) for k in range(_WORD)]

    def _width(self, buffer: Any, base: Any, total: int) -> int | None:
        """Bytes of one access, 16 or 4; None where a vector is shorter than a word, or private to the thread."""
        if buffer not in self._aligned or total < _WORD:
            return None
        found = self._known.modular_set(base)
        size = _item_bytes(buffer)
        for width in (_GRANULE, _WORD):
            divides = not (self._aligned[buffer] % width or found.coeff * size % width or found.base * size % width)
            if divides and total % width == 0:
                self.accesses += 1
                return width
        raise Refused


def _item_bytes(buffer: Any) -> int:
    return int(str(buffer.dtype).removeprefix("u").removeprefix("int")) // 8


def _address(buffer: Any, index: Expr) -> Expr:
    return tir.address_of(tir.BufferLoad(buffer, [index]))


def _signed(word: int) -> int:
    """The int32 of 32 bits."""
    word &= (1 << _HALF) - 1
    return word - (1 << _HALF) if word >= _LIMIT else word


def _is_reinterpret(e: Any) -> bool:
    named = str(getattr(getattr(e, "op", None), "name", "")).endswith("reinterpret")
    return named and str(e.ty.dtype).startswith("int64") and str(e.args[0].ty.dtype).startswith("int32")


def _is_half(e: Any) -> bool:
    return isinstance(e, tir.Broadcast) and isinstance(e.value, tir.IntImm) and int(e.value.value) == _HALF
