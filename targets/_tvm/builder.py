"""A small statement builder over TIR: the only place that spells TVM's node constructors for kernels.

A kernel becomes one C function `int name(T0* p0, T1* p1, ...)` that returns 0; pointers never alias.
Nothing in it is packed, so a caller pays for a plain function call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx as tir

Expr = Any
"""A TIR expression, or a Python int where TIR accepts one."""

_UNBOUNDED = 1 << 30
"""Flat extent of pointer parameters: kernels index them with offsets they computed themselves."""


def const(value: int, dtype: str = "int32") -> Expr:
    """An integer constant; for a vector dtype (`int32x16`) the value in every lane."""
    scalar, _, lanes = dtype.partition("x")
    imm = tir.IntImm(scalar, value)
    return tir.Broadcast(imm, int(lanes)) if lanes else imm


def vec(scalar: str, lanes: int) -> str:
    """`int32`, 16 → `int32x16`; one lane is the scalar."""
    return scalar if lanes == 1 else f"{scalar}x{lanes}"


def dtype_of(x: Expr) -> str:
    return str(x.ty.dtype) if hasattr(x.ty, "dtype") else str(x.ty)


def lanes_of(x: Expr) -> int:
    return int(dtype_of(x).partition("x")[2] or 1)


def cast(dtype: str, x: Expr) -> Expr:
    return x if dtype_of(x) == dtype else tir.Cast(dtype, x)


def broadcast(x: Expr, lanes: int) -> Expr:
    return x if lanes == 1 or lanes_of(x) == lanes else tir.Broadcast(x, lanes)


def reinterpret(dtype: str, x: Expr) -> Expr:
    return x if dtype_of(x) == dtype else tir.reinterpret(dtype, x)


def shuffle(a: Expr, b: Expr, indices: list[int]) -> Expr:
    """Lanes of the concatenation (a, b), by constant index."""
    return tir.Shuffle([a, b], [const(i) for i in indices])


def llvm(name: str, dtype: str, *args: Expr) -> Expr:
    """A call of an LLVM intrinsic without side effects."""
    return tir.call_llvm_pure_intrin(dtype, name, *args)


class Builder:
    """Collects the statements of one kernel.  `loop`, `parallel` and `when` open nested scopes."""

    def __init__(self) -> None:
        self._scopes: list[list[Any]] = [[]]
        self._params: list[Any] = []
        self._header: list[Any] = []
        self._count = 0

    def _name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def _emit(self, stmt: Any) -> None:
        self._scopes[-1].append(stmt)

    def _close(self) -> Any:
        body = self._scopes.pop()
        if not body:
            body = [tir.Evaluate(const(0))]
        return body[0] if len(body) == 1 else tir.SeqStmt(body)

    def pointer(self, name: str, dtype: str) -> Any:
        """The next parameter: a flat buffer of `dtype`.  May be called at any depth."""
        var = tir.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype), "global"))
        self._params.append(var)
        buffer = tir.decl_buffer((_UNBOUNDED,), dtype, name=f"{name}_data", data=var)
        self._header.append(tir.DeclBuffer(buffer, data=var))
        return buffer

    def local(self, dtype: str, size: int = 1, scope: str = "local") -> Any:
        """Scratch on the stack; with constant indices it lives in registers.  `scope`: "shared" on a GPU is
        memory of a block."""
        buffer = tir.decl_buffer((size,), dtype, name=self._name(scope), scope=scope)
        self._emit(tir.AllocBuffer(buffer))
        return buffer

    def aligned_local(self, dtype: str, size: int) -> tuple[Any, Expr]:
        """Scratch on the stack in which whole cache lines begin at the returned index.

        The code generator aligns arrays on the stack to 16 bytes only, and a vector that crosses two lines costs twice.
        """
        line, item = 64, int(dtype.removeprefix("u").removeprefix("int")) // 8
        buffer = self.local(dtype, size + line // item)
        address = tir.reinterpret("int64", tir.address_of(self.load(buffer, 0)))
        over = cast("int32", tir.bitwise_and(address, const(line - 1, "int64")))
        return buffer, self.let(tir.truncdiv(tir.bitwise_and(const(0) - over, const(line - 1)), const(item)))

    @contextmanager
    def loop(self, extent: Expr, kind: str = "serial") -> Iterator[Expr]:
        """`for i in range(extent)`; a constant extent of 1 opens no loop."""
        if extent == 1 and isinstance(extent, int) and kind != "parallel":
            yield const(0)
            return
        var = tir.Var(self._name("i"), "int32")
        self._scopes.append([])
        yield var
        body = self._close()
        kinds = {
            "serial": tir.ForKind.SERIAL,
            "parallel": tir.ForKind.PARALLEL,
            "unroll": tir.ForKind.UNROLLED,
        }
        count = const(extent) if isinstance(extent, int) else extent
        self._emit(tir.For(var, const(0), count, kinds[kind], body))

    @contextmanager
    def share(self, units: int) -> Iterator[tuple[Expr, Expr]]:
        """Run the body once on each thread, with its own range of `units` pieces of work: (first, count).

        A thread for which nothing is left has a count of 0.  Inside a launch TVM gives a parallel loop's iterations to
        the threads in contiguous ranges; a loop that does nothing else tells each of them which is its own.
        """
        self._scopes.append([])
        first, count = self.local("int32"), self.local("int32")
        self.store(first, 0, const(0))
        self.store(count, 0, const(0))
        with self.loop(units, "parallel") as i:
            done = self.let(self.load(count, 0))
            self.store(first, 0, i - done)
            self.store(count, 0, done + 1)
        yield self.let(self.load(first, 0)), self.let(self.load(count, 0))
        self._emit(tir.AttrStmt(const(0), "pragma_parallel_launch_point", const(0), self._close()))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        self._scopes.append([])
        yield
        self._emit(tir.IfThenElse(condition, self._close(), None))

    def let(self, value: Expr) -> Expr:
        """Name a value, so that it is computed once."""
        if isinstance(value, int):
            return const(value)
        var = tir.Var(self._name("v"), value.ty)
        self._emit(tir.Bind(var, value))
        return var

    def load(self, buffer: Any, index: Expr, lanes: int = 1) -> Expr:
        """`lanes` consecutive elements from `index`."""
        index = const(index) if isinstance(index, int) else index
        return tir.BufferLoad(buffer, [index if lanes == 1 else tir.Ramp(index, const(1), lanes)])

    def gather(self, buffer: Any, indices: Expr) -> Expr:
        """The elements at every lane's own index."""
        return tir.BufferLoad(buffer, [indices])

    def store(self, buffer: Any, index: Expr, value: Expr) -> None:
        """Store a value, as many elements as it has lanes, from `index`."""
        index = const(index) if isinstance(index, int) else index
        lanes = lanes_of(value) if str(buffer.dtype).find("x") < 0 else 1
        self._emit(tir.BufferStore(buffer, value, [index if lanes == 1 else tir.Ramp(index, const(1), lanes)]))

    def prefetch(self, buffer: Any, index: Expr, *, nearest: bool = True) -> None:
        """Ask for an element's cache line ahead of time; any index is allowed.

        `nearest`: into every cache; else into the second one and those behind it.
        """
        address, read, data = tir.address_of(self.load(buffer, index)), const(0), const(1)
        locality = const(3 if nearest else 2)
        self.evaluate(tir.call_llvm_intrin("void", "llvm.prefetch", address, read, locality, data))

    def evaluate(self, value: Expr) -> None:
        self._emit(tir.Evaluate(value))

    def function(self, name: str) -> Any:
        """The finished PrimFunc `int name(pointers...)`."""
        self._emit(tir.Return(const(0)))
        body = tir.SeqStmt([*self._header, self._close()])
        func = tir.PrimFunc(self._params, body, ret_type=tvm.ir.PrimType("int32"))
        return func.with_attr("global_symbol", name).with_attr("tirx.noalias", True)
