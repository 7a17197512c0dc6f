"""Runs kernels for GPUs without one: NumPy over all threads at once.

Every expression is an array with one element for each thread of the launch; statements run in lockstep, so
control flow that differs between threads becomes masks.  What a real device may do differently is checked
instead: an access outside a buffer, and shared memory touched by two threads without a barrier between, are
errors.  Asynchronous copies arrive only when their group is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx as tir
from tvm.ir.expr import TensorLoad

from qcompile.errors import InternalError
from qcompile.ir import Array, storage
from qcompile.target.program import Program
from targets._tvm.context import Argument, Constant, Value
from targets.cuda.backend import CudaBackend
from targets.cuda.conv_mma import BLOCK, LANE, LANES, THREADS
from targets.cuda.grid import STRIDE, THREAD
from targets.cuda.printer import Kernel

Values = NDArray[Any]
Mask = NDArray[np.bool_]


class UndefinedError(InternalError):
    """What would be undefined on a device."""


@dataclass(frozen=True)
class Address:
    """Elements that threads point at: a buffer's memory, and an index for each thread."""

    buffer: Memory
    index: Values


class Memory:
    """Global memory: one flat array that all threads share."""

    def __init__(self, name: str, data: Array) -> None:
        self.name, self.data = name, data

    def at(self, index: Values, mask: Mask) -> Values:
        """Indices of the flat array; those of inactive threads are harmless."""
        index = np.where(mask, index, 0)
        if index.size and (index.min() < 0 or index.max() >= self.data.size):
            raise UndefinedError(f"{self.name}: index {index.min()} to {index.max()} of {self.data.size} elements")
        return index

    def load(self, index: Values, mask: Mask) -> Values:
        return np.asarray(self.data[self.at(index, mask)])

    def store(self, index: Values, value: Values, mask: Mask) -> None:
        at = self.at(index, mask)[mask]
        if len(np.unique(at)) != len(at):
            raise UndefinedError(f"{self.name}: two threads store to one element")
        self.data[at] = value[mask]

    def bytes_at(self, index: Values, mask: Mask, count: int) -> NDArray[np.intp]:
        """(threads, elements) indices of `count` bytes from each thread's index."""
        elements = count // self.data.itemsize
        whole = index[:, None] + np.arange(elements)
        if np.any((index * self.data.itemsize)[mask] % count):
            raise UndefinedError(f"{self.name}: {count} bytes are not aligned")
        return np.stack([self.at(column, mask) for column in whole.T], axis=1).astype(np.intp)


class Private(Memory):
    """Memory of each thread alone: a row for each."""

    def __init__(self, name: str, threads: int, size: int, dtype: str) -> None:
        super().__init__(name, np.zeros(threads * size, dtype))
        self._size, self._rows = size, np.arange(threads) * size

    def at(self, index: Values, mask: Mask) -> Values:
        index = np.where(mask, index, 0)
        if index.min() < 0 or index.max() >= self._size:
            raise UndefinedError(f"{self.name}: index {index.min()} to {index.max()} of {self._size} elements")
        return self._rows + index


class Shared(Memory):
    """Memory of each block, with a record of who touched what since the last barrier."""

    def __init__(self, name: str, blocks: int, size: int, dtype: str) -> None:
        super().__init__(name, np.zeros(blocks * size, dtype))
        self._size, self._rows = size, np.repeat(np.arange(blocks) * size, THREADS)
        self.barrier()

    def barrier(self) -> None:
        self._writer = np.full(self.data.size, -1)
        self._reader = np.full(self.data.size, -1)

    def at(self, index: Values, mask: Mask) -> Values:
        index = np.where(mask, index, 0)
        if index.min() < 0 or index.max() >= self._size:
            raise UndefinedError(f"{self.name}: index {index.min()} to {index.max()} of {self._size} elements")
        return self._rows + index

    def note(self, at: Values, mask: Mask, threads: Values, *, store: bool) -> None:
        """Record an access; `at` are indices of the flat array."""
        places, who = at[mask], threads[mask]
        written = self._writer[places]
        if np.any((written >= 0) & (written != who)):
            raise UndefinedError(f"{self.name}: no barrier after a store by another thread")
        if store:
            read = self._reader[places]
            if np.any((read != -1) & (read != who)):
                raise UndefinedError(f"{self.name}: no barrier after a load by another thread")
            self._writer[places] = who
        else:
            before = self._reader[places]
            self._reader[places] = np.where((before == -1) | (before == who), who, -2)

    def load(self, index: Values, mask: Mask) -> Values:
        at = self.at(index, mask)
        self.note(at, mask, np.arange(len(at)), store=False)
        return np.asarray(self.data[at])

    def store(self, index: Values, value: Values, mask: Mask) -> None:
        at = self.at(index, mask)
        self.note(at, mask, np.arange(len(at)), store=True)
        super().store(index, value, mask)


_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    tir.Add: np.add, tir.Sub: np.subtract, tir.Mul: np.multiply, tir.FloorDiv: np.floor_divide, tir.FloorMod: np.mod,
    tir.Div: np.floor_divide, tir.Mod: np.mod, tir.Min: np.minimum, tir.Max: np.maximum,
    tir.EQ: np.equal, tir.NE: np.not_equal, tir.LT: np.less, tir.LE: np.less_equal, tir.GT: np.greater,
    tir.GE: np.greater_equal, tir.And: np.logical_and, tir.Or: np.logical_or,
    tir.RShift: np.right_shift, tir.LShift: np.left_shift, tir.BitwiseAnd: np.bitwise_and, tir.BitwiseOr: np.bitwise_or,
}  # fmt: skip
"""Divisions are of indices, which are never negative."""


@dataclass
class Emulator:
    """One launch of a kernel.

    Args:
        kernel: printed or not, its function is what runs.
        arrays: what its pointers point at, changed in place.
    """

    kernel: Kernel
    arrays: list[Array]
    _memory: dict[Any, Memory] = field(default_factory=dict)
    _values: dict[Any, Values] = field(default_factory=dict)
    _pending: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])

    def run(self) -> None:
        """Raises UndefinedError where a device might do something else."""
        threads = self.kernel.blocks * THREADS
        self._count = threads
        every = np.arange(threads, dtype=np.int32)
        self._places = {
            BLOCK: every // THREADS, LANE: every % THREADS, THREAD: every,
            STRIDE: np.full(threads, threads, dtype=np.int32),
        }  # fmt: skip
        given = iter(self.arrays)
        for stmt in self.kernel.func.body.seq:
            for one in stmt.seq if isinstance(stmt, tir.SeqStmt) else [stmt]:
                if isinstance(one, tir.DeclBuffer):
                    array = next(given)
                    self._memory[one.buffer] = Memory(str(one.buffer.name), array)
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
                self._memory[s.buffer] = Shared(name, self.kernel.blocks, size, dtype)
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
        binary = {"shift_right": np.right_shift, "shift_left": np.left_shift, "bitwise_and": np.bitwise_and}
        if operator in binary:
            return np.asarray(binary[operator](*(self._expr(a, mask) for a in e.args)))
        raise InternalError(f"cannot emulate the expression {operator}")

    def _choice(self, mask: Mask, condition: Any, then: Any, otherwise: Any) -> Values:
        chosen = self._expr(condition, mask).astype(bool)
        a, b = self._expr(then, mask & chosen), self._expr(otherwise, mask & ~chosen)
        return np.asarray(np.where(chosen, a, b))

    # The device functions of `runtime`.

    def q_sync(self, mask: Mask) -> None:
        if not mask.all():
            raise UndefinedError("a barrier that not all threads reach")
        for memory in self._memory.values():
            if isinstance(memory, Shared):
                memory.barrier()

    def q_copy16(self, mask: Mask, to: Address, of: Address) -> None:
        data = of.buffer.data[of.buffer.bytes_at(of.index, mask, 16)]
        self._pending[-1].append(lambda: self._put16(mask, to, data))

    def _put16(self, mask: Mask, to: Address, data: Array) -> None:
        memory = to.buffer
        at = memory.bytes_at(to.index, mask, 16)
        if isinstance(memory, Shared):
            for column in at.T:
                memory.note(column, mask, np.arange(self._count), store=True)
        values = np.ascontiguousarray(data).view(np.uint8).view(memory.data.dtype)
        memory.data[at[mask]] = values[mask]

    def q_commit(self, mask: Mask) -> None:
        self._pending.append([])

    def q_wait_but_one(self, mask: Mask) -> None:
        # The last entry is the group still open, the one before the newest that was committed.
        for group in self._pending[:-2]:
            for copy in group:
                copy()
            group.clear()

    def q_store16(self, mask: Mask, to: Address, of: Address) -> None:
        memory, at = of.buffer, of.buffer.bytes_at(of.index, mask, 16)
        if isinstance(memory, Shared):
            for column in at.T:
                memory.note(column, mask, np.arange(self._count), store=False)
        self._put16(mask, to, memory.data[at])

    def q_fill16(self, mask: Mask, to: Address, byte: Values) -> None:
        self._put16(mask, to, np.repeat(byte.astype(np.uint8)[:, None], 16, axis=1))

    def q_mma(self, mask: Mask, acc: Address, *words: Values) -> None:
        if not mask.all():
            raise UndefinedError("a matrix instruction that not all threads reach")
        by_warp = [np.ascontiguousarray(w).reshape(-1, LANES) for w in words]
        warps = len(by_warp[0])
        first = np.zeros((warps, 16, 32), dtype=np.int64)
        second = np.zeros((warps, 32, 8), dtype=np.int64)
        lane = np.arange(LANES)
        group, quad = lane // 4, lane % 4
        for i, word in enumerate(by_warp[:4]):
            unsigned = word.view(np.uint8).reshape(warps, LANES, 4)
            for byte in range(4):
                first[:, group + 8 * (i % 2), 16 * (i // 2) + quad * 4 + byte] = unsigned[:, :, byte]
        for i, word in enumerate(by_warp[4:]):
            signed = word.view(np.int8).reshape(warps, LANES, 4)
            for byte in range(4):
                second[:, 16 * i + quad * 4 + byte, group] = signed[:, :, byte]
        product = first @ second
        for i in range(4):
            part = product[:, group + 8 * (i // 2), quad * 2 + i % 2].reshape(-1)
            index = acc.index + i
            value = acc.buffer.load(index, mask).astype(np.int64) + part
            acc.buffer.store(index, value.astype(np.int32), mask)


def run_program(backend: CudaBackend, program: Program, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a whole program for one sample, by output name; every kernel emulated in turn.

    Args:
        inputs: integers by input name, with a batch of 1.
    """
    graph = program.graph
    arena = np.zeros(program.arena_bytes, dtype=np.uint8)
    callers: dict[str, Array] = {}

    def place(value: str) -> Array:
        layout = program.buffers[value].layout
        dtype = storage(layout.dtype)
        if program.buffers[value].place == "arena":
            start = program.buffers[value].offset
            return arena[start : start + layout.bytes].view(dtype)
        if value in inputs:
            return np.ascontiguousarray(inputs[value], dtype=dtype).reshape(-1)
        return callers.setdefault(value, np.zeros(layout.elements, dtype=dtype))

    for i, kernel in enumerate(program.kernels):
        emitted = backend.emit(kernel, program)
        arrays = [place(a.name) if isinstance(a, Value) else _packed(a) for a in emitted.arguments]
        Emulator(Kernel(emitted.func, f"k{i}"), arrays).run()
    return {o.name: place(o.value).reshape(1, *graph.type_of(o.value).sample) for o in graph.outputs}


def _packed(argument: Argument) -> Array:
    assert isinstance(argument, Constant)
    return argument.array.reshape(-1).copy()
