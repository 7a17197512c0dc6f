"""Runs kernels for GPUs without one: NumPy over all threads at once.

Every expression is an array with one element for each thread of the launch; statements run in lockstep, so
control flow that differs between threads becomes masks.  What a real device may do differently is checked
instead: an access outside a buffer, and memory touched by two threads with nothing that orders them, are errors (see
`emulated`).  Asynchronous copies arrive when their group is waited for, and what they fill is nobody's before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

import numpy as np
from tvm import tirx as tir
from tvm.ir.expr import TensorLoad

from qcompile.errors import InternalError
from qcompile.ir import Array
from targets.cuda import emulated_mma as mma
from targets.cuda.block import BLOCK, LANE, LANES, SAMPLE, SAMPLES, THREADS, stride_name
from targets.cuda.device import TOGETHER, VALUES
from targets.cuda.emulated import Address, Mask, Memory, Order, Private, Shared, UndefinedError, Values
from targets.cuda.grid import THREAD
from targets.cuda.printer import Kernel

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    tir.Add: np.add, tir.Sub: np.subtract, tir.Mul: np.multiply, tir.FloorDiv: np.floor_divide, tir.FloorMod: np.mod,
    tir.Div: np.floor_divide, tir.Mod: np.mod, tir.Min: np.minimum, tir.Max: np.maximum,
    tir.EQ: np.equal, tir.NE: np.not_equal, tir.LT: np.less, tir.LE: np.less_equal, tir.GT: np.greater,
    tir.GE: np.greater_equal, tir.And: np.logical_and, tir.Or: np.logical_or,
    tir.RShift: np.right_shift, tir.LShift: np.left_shift, tir.BitwiseAnd: np.bitwise_and, tir.BitwiseOr: np.bitwise_or,
    tir.BitwiseXor: np.bitwise_xor,
}  # fmt: skip
"""Divisions are of indices, which are never negative."""


@dataclass
class Emulator:
    """One launch of a kernel.

    Args:
        kernel: printed or not, its function is what runs.
        arrays: what its pointers point at, changed in place.
        counting: count bank conflicts, in `conflicts`.
        backwards: blocks arrive at counters last one first.
        synchronous: copies are loads and stores, as on sm_75.
        samples: of a folded kernel.
        strides: bytes from each of its pointers to that of the next sample.
    """

    kernel: Kernel
    arrays: list[Array]
    counting: bool = False
    backwards: bool = False
    synchronous: bool = False
    samples: int = 1
    strides: tuple[int, ...] = ()
    _memory: dict[Any, Memory] = field(default_factory=dict, init=False)
    _values: dict[Any, Values] = field(default_factory=dict, init=False)
    _pending: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]], init=False)

    def run(self) -> None:
        """Raises UndefinedError where a device might do something else."""
        blocks = self.kernel.blocks * self.samples
        self._count = threads = blocks * THREADS
        every = np.arange(threads, dtype=np.int32)
        block = every // THREADS
        self._places = {
            BLOCK: block % self.kernel.blocks, LANE: every % THREADS, THREAD: every,
            SAMPLE: block // self.kernel.blocks, SAMPLES: np.full(threads, self.samples, dtype=np.int32),
        }  # fmt: skip
        self._order = Order(blocks)
        given = iter(zip(self.arrays, self.strides or [0] * len(self.arrays), strict=True))
        for stmt in self.kernel.func.body.seq:
            for one in stmt.seq if isinstance(stmt, tir.SeqStmt) else [stmt]:
                if isinstance(one, tir.DeclBuffer):
                    array, stride = next(given)
                    self._memory[one.buffer] = Memory(str(one.buffer.name), array, self._order)
                    self._places[stride_name(one.buffer)] = np.full(threads, stride, dtype=np.int64)
        with np.errstate(over="ignore"):
            self._statement(self.kernel.func.body, np.ones(threads, dtype=bool))

    def _statement(self, s: Any, mask: Mask) -> None:
        if isinstance(s, tir.SeqStmt):
            for one in s.seq:
                self._statement(one, mask)
        elif isinstance(s, tir.BufferStore):
            (index,) = s.indices
            memory = self._memory[s.buffer]
            memory.store(self._expr(index, mask), self._expr(s.value, mask).astype(memory.data.dtype), mask)
        elif isinstance(s, tir.Bind):
            self._values[s.var] = self._expr(s.value, mask)
        elif isinstance(s, tir.For):
            first, extent = self._expr(s.min, mask), self._expr(s.extent, mask)
            if np.any(extent != extent[0]) or np.any(first):
                raise UndefinedError("a loop whose length differs between threads")
            for i in range(int(extent[0])):
                self._values[s.loop_var] = np.full(self._count, i, dtype=np.int32)
                self._statement(s.body, mask)
        elif isinstance(s, tir.IfThenElse):
            inside = mask & self._expr(s.condition, mask).astype(bool)
            if inside.any():
                self._statement(s.then_case, inside)
        elif isinstance(s, tir.AllocBuffer):
            (size,) = (int(n) for n in s.buffer.shape)
            name, dtype = str(s.buffer.name), str(s.buffer.dtype)
            if s.buffer.scope() == "shared":
                self._memory[s.buffer] = Shared(name, self._count // THREADS, size, dtype, counting=self.counting)
            else:
                self._memory[s.buffer] = Private(name, self._count, size, dtype)
        elif isinstance(s, tir.Evaluate):
            if not isinstance(s.value, tir.IntImm):
                arguments = [self._expr(a, mask) for a in s.value.args[1:]]
                getattr(self, s.value.args[0].value)(mask, *arguments)
        elif not isinstance(s, tir.DeclBuffer | tir.Return):
            raise InternalError(f"cannot emulate the statement {type(s).__name__}")

    def _expr(self, e: Any, mask: Mask) -> Any:
        if isinstance(e, tir.IntImm):
            return np.full(self._count, int(e.value), dtype=str(e.ty.dtype))
        if isinstance(e, tir.Var):
            return self._values[e] if e in self._values else self._places[str(e.name)]
        if isinstance(e, TensorLoad):
            (index,) = e.indices
            return self._memory[e.source].load(self._expr(index, mask), mask)
        if isinstance(e, tir.Cast):
            return self._expr(e.value, mask).astype(str(e.ty.dtype))
        if type(e) in _BINARY:
            return _BINARY[type(e)](self._expr(e.a, mask), self._expr(e.b, mask))
        if isinstance(e, tir.Not):
            return ~self._expr(e.a, mask).astype(bool)
        if isinstance(e, tir.Broadcast):
            return self._expr(e.value, mask)
        if isinstance(e, tir.Select):
            return self._choice(mask, e.condition, e.true_value, e.false_value)
        operator = str(getattr(getattr(e, "op", None), "name", type(e).__name__)).rpartition(".")[2]
        if operator == "if_then_else":
            return self._choice(mask, *e.args)
        if operator == "address_of":
            (index,) = e.args[0].indices
            return Address(self._memory[e.args[0].source], self._expr(index, mask))
        if operator == "call_extern":
            return self._call(mask, str(e.args[0].value), [self._expr(a, mask) for a in e.args[1:]])
        binary = {"shift_right": np.right_shift, "shift_left": np.left_shift, "bitwise_and": np.bitwise_and}
        if operator in binary:
            return np.asarray(binary[operator](*(self._expr(a, mask) for a in e.args)))
        raise InternalError(f"cannot emulate the expression {operator}")

    def _choice(self, mask: Mask, condition: Any, then: Any, otherwise: Any) -> Values:
        chosen = self._expr(condition, mask).astype(bool)
        a, b = self._expr(then, mask & chosen), self._expr(otherwise, mask & ~chosen)
        return np.asarray(np.where(chosen, a, b))

    def _call(self, mask: Mask, name: str, arguments: list[Any]) -> Values:
        """A device function that has a value."""
        if name == "q_word":
            (of,) = arguments
            at = of.buffer.bytes_at(of.index, mask, 4)
            return np.asarray(of.buffer.get(at, mask).view(np.int32).reshape(-1))
        if name in TOGETHER and not mask.all():
            raise UndefinedError(f"{name}: not all threads of a warp reach it")
        with np.errstate(over="ignore"):
            return VALUES[name](*arguments)

    # The device functions of `runtime`.

    @property
    def conflicts(self) -> Counter[int]:
        """Turns that accesses of shared memory took beyond the first, by their width in bytes."""
        memories = [memory for memory in self._memory.values() if isinstance(memory, Shared)]
        return sum((memory.conflicts for memory in memories), Counter())

    def _globals(self) -> list[Memory]:
        return [memory for memory in self._memory.values() if memory.writer.size]

    def _whole(self, mask: Mask, threads: int, what: str) -> Mask:
        """Which groups of so many threads take part; raises where a group does so in part."""
        groups = mask.reshape(-1, threads)
        if np.any(groups.any(axis=1) != groups.all(axis=1)):
            raise UndefinedError(f"{what} that not all threads reach")
        return np.asarray(groups.all(axis=1))

    def q_sync(self, mask: Mask) -> None:
        blocks = self._whole(mask, THREADS, "a barrier")
        for memory in self._memory.values():
            if isinstance(memory, Shared):
                memory.barrier(blocks)
        self._order.barrier(self._globals(), blocks)

    def q_fence(self, mask: Mask) -> None:
        self._order.fence(self._globals(), mask)

    def q_arrive(self, mask: Mask, counter: Address, last: Values, ticket: Address) -> None:
        counts, tickets = counter.buffer.data, np.zeros(self._count, dtype=np.int32)
        arriving = np.flatnonzero(mask)
        for thread in arriving[::-1] if self.backwards else arriving:
            place = int(counter.buffer.at(counter.index, mask)[thread])
            tickets[thread] = counts[place]
            counts[place] = 0 if counts[place] >= last[thread] else counts[place] + 1
            self._order.arrive(self._globals(), int(thread), place)
        ticket.buffer.store(ticket.index, tickets, mask)

    def _copy(self, mask: Mask, to: Address, of: Address, count: int) -> None:
        if self.synchronous:
            self._store(mask, to, of, count)
            return
        data = of.buffer.get(of.buffer.bytes_at(of.index, mask, count), mask)
        at = to.buffer.bytes_at(to.index, mask, count)
        to.buffer.expect(at, mask)
        self._pending[-1].append(lambda: to.buffer.put(at, data, mask))

    q_copy4 = partialmethod(_copy, count=4)
    q_copy8 = partialmethod(_copy, count=8)
    q_copy16 = partialmethod(_copy, count=16)

    def _fetch(self, mask: Mask, held: Address, to: Address, of: Address, count: int) -> None:
        if self.synchronous:
            self._store(mask, held, of, count)
        else:
            self._copy(mask, to, of, count)

    q_fetch4 = partialmethod(_fetch, count=4)
    q_fetch8 = partialmethod(_fetch, count=8)
    q_fetch16 = partialmethod(_fetch, count=16)

    def _land(self, mask: Mask, to: Address, held: Address, count: int) -> None:
        if self.synchronous:
            self._store(mask, to, held, count)

    q_land4 = partialmethod(_land, count=4)
    q_land8 = partialmethod(_land, count=8)
    q_land16 = partialmethod(_land, count=16)

    def q_commit(self, mask: Mask) -> None:
        self._pending.append([])

    def _wait(self, mask: Mask, but: int) -> None:
        # The last entry is the group still open.
        for group in self._pending[: -1 - but]:
            for copy in group:
                copy()
            group.clear()

    q_wait0 = partialmethod(_wait, but=0)
    q_wait1 = partialmethod(_wait, but=1)
    q_wait2 = partialmethod(_wait, but=2)
    q_wait3 = partialmethod(_wait, but=3)
    q_wait4 = partialmethod(_wait, but=4)

    def _store(self, mask: Mask, to: Address, of: Address, count: int) -> None:
        data = of.buffer.get(of.buffer.bytes_at(of.index, mask, count), mask)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, count), data, mask)

    q_store4 = partialmethod(_store, count=4)
    q_store8 = partialmethod(_store, count=8)
    q_store16 = partialmethod(_store, count=16)
    q_put4 = partialmethod(_store, count=16)

    def q_add4(self, mask: Mask, acc: Address, of: Address) -> None:
        data = of.buffer.get(of.buffer.bytes_at(of.index, mask, 16), mask).view(np.int32)
        at = acc.buffer.bytes_at(acc.index, mask, 16)
        acc.buffer.put(at, (acc.buffer.data[at] + data).view(np.uint8), mask)

    def q_bytes2(self, mask: Mask, to: Address, low: Values, high: Values) -> None:
        data = np.stack([low, high], axis=1).astype(np.uint8)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, 2), data, mask)

    def q_words2(self, mask: Mask, to: Address, low: Values, high: Values) -> None:
        data = np.stack([low, high], axis=1).astype(np.int32).view(np.uint8)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, 8), data, mask)

    q_load16 = partialmethod(_store, count=16)

    def q_put(self, mask: Mask, to: Address, *words: Values) -> None:
        data = np.stack(words, axis=1).astype(np.int32).view(np.uint8)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, 4 * len(words)), data, mask)

    q_put16 = q_put

    def q_fill16(self, mask: Mask, to: Address, byte: Values) -> None:
        data = np.repeat(byte.astype(np.uint8)[:, None], 16, axis=1)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, 16), data, mask)

    def q_ldmatrix4(self, mask: Mask, to: Address, row: Address) -> None:
        self._whole(mask, LANES, "a matrix load")
        at = row.buffer.bytes_at(row.index, mask, 16)
        words = row.buffer.get(at, mask, together=True).view(np.int32).reshape(-1, 4, 8, 4)
        data = words.transpose(0, 2, 3, 1).reshape(-1, 4)
        to.buffer.put(to.buffer.bytes_at(to.index, mask, 16), data.copy().view(np.uint8), mask)

    def q_mma(self, mask: Mask, acc: Address, *words: Values) -> None:
        self._multiply(mask, acc, [mma.bytes_of(w, signed=i >= 4) for i, w in enumerate(words)])

    def q_mma_s4(self, mask: Mask, acc: Address, *words: Values) -> None:
        self._multiply(mask, acc, [mma.nibbles_of(w, signed=i >= 4) for i, w in enumerate(words)])

    def _multiply(self, mask: Mask, acc: Address, fragments: list[Values]) -> None:
        self._whole(mask, LANES, "a matrix instruction")
        at = acc.buffer.bytes_at(acc.index, mask, 16)
        total = acc.buffer.data[at] + mma.product(fragments)
        acc.buffer.put(at, total.astype(np.int32).view(np.uint8), mask)
