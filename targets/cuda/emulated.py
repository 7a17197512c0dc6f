"""Memory of an emulated device, and which uses of it a real device leaves undefined.

Elements are those of NumPy arrays; an access is made by all threads of a launch at once, `mask` says which take part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InternalError
from qcompile.ir import Array
from targets.cuda.block import LANES, THREADS

Values = NDArray[Any]
Mask = NDArray[np.bool_]

BANKS = 32
"""Of shared memory: words of 4 bytes, one of each at a time."""

_STORED, _FENCED, _TOGETHER, _PUBLISHED = range(4)
"""How far a store has come: made; behind a fence of its thread; of its block; announced by an arrival."""
_UNSEEN, _ARRIVED, _SHOWN, _SEEN = range(4)
"""How far an arrival has been noticed: not; by the arriving thread; by its block; and a fence behind it."""


_SEVERAL = -2
"""In place of a thread's number: more than one."""


class UndefinedError(InternalError):
    """What would be undefined on a device."""


@dataclass(frozen=True)
class Address:
    """Elements that threads point at: a buffer's memory, and an index for each thread."""

    buffer: Memory
    index: Values


def _threads(mask: Mask, at: Values) -> Values:
    """The thread of every element of `at[mask]`."""
    who = np.flatnonzero(mask)
    return np.repeat(who, at.shape[1]) if at.ndim > 1 else who


class Memory:
    """Global memory: one flat array that all threads share.

    Blocks are ordered by nothing but fences and arrivals (`Order`): what a block stored, another may not read.
    """

    def __init__(self, name: str, data: Array, order: Order | None = None) -> None:
        self.name, self.data = name, data
        self._order = order
        self.writer = np.full(data.size if order else 0, -1, dtype=np.int32)
        self.state = np.zeros(self.writer.size, dtype=np.int8)

    def at(self, index: Values, mask: Mask) -> Values:
        """Indices of the flat array; those of inactive threads are harmless."""
        index = np.where(mask, index, 0)
        if index.size and (index.min() < 0 or index.max() >= self.data.size):
            raise UndefinedError(f"{self.name}: index {index.min()} to {index.max()} of {self.data.size} elements")
        return index

    def note(self, at: Values, mask: Mask, *, store: bool, together: bool = False) -> None:
        """Check and record an access; `at`, (threads) or (threads, elements), are indices of the flat array.

        `together`: what a thread asks for is for all of its warp.
        """
        if self._order is None:
            return
        places, who = at[mask].reshape(-1), _threads(mask, at)
        before = self.writer[places]
        foreign = (before >= 0) & (before // THREADS != who // THREADS)
        if store:
            if np.any(foreign):
                raise UndefinedError(f"{self.name}: two blocks store to one element")
            self.writer[places], self.state[places] = who, _STORED
        elif np.any(foreign):
            seen = self._order.seen[who[foreign] // THREADS, before[foreign] // THREADS]
            if np.any(seen != _SEEN) or np.any(self.state[places[foreign]] != _PUBLISHED):
                raise UndefinedError(f"{self.name}: nothing orders a load behind the store of another block")

    def load(self, index: Values, mask: Mask) -> Values:
        at = self.at(index, mask)
        self.note(at, mask, store=False)
        return np.asarray(self.data[at])

    def store(self, index: Values, value: Values, mask: Mask) -> None:
        at = self.at(index, mask)
        self.note(at, mask, store=True)
        if len(np.unique(at[mask])) != np.count_nonzero(mask):
            raise UndefinedError(f"{self.name}: two threads store to one element")
        self.data[at[mask]] = value[mask]

    def bytes_at(self, index: Values, mask: Mask, count: int) -> NDArray[np.intp]:
        """(threads, elements) indices of `count` bytes from each thread's index."""
        elements = count // self.data.itemsize
        whole = index[:, None] + np.arange(elements)
        if np.any((index * self.data.itemsize)[mask] % count):
            raise UndefinedError(f"{self.name}: {count} bytes are not aligned")
        return np.stack([self.at(column, mask) for column in whole.T], axis=1).astype(np.intp)

    def get(self, at: NDArray[np.intp], mask: Mask, *, together: bool = False) -> NDArray[np.uint8]:
        """(threads, bytes): what lies at `bytes_at`."""
        self.note(at, mask, store=False, together=together)
        return np.ascontiguousarray(self.data[at]).view(np.uint8)

    def put(self, at: NDArray[np.intp], data: Array, mask: Mask) -> None:
        """Store (threads, bytes) at `bytes_at`."""
        self.note(at, mask, store=True)
        if len(np.unique(at[mask])) != at[mask].size:
            raise UndefinedError(f"{self.name}: two threads store to one element")
        self.data[at[mask]] = np.ascontiguousarray(data, dtype=np.uint8).view(self.data.dtype)[mask]

    def expect(self, at: NDArray[np.intp], mask: Mask) -> None:
        """An asynchronous copy to here begins; `put` ends it."""


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
    """Memory of each block, with a record of who touched what since the last barrier.

    Attributes:
        conflicts: turns beyond the first that accesses took because words of one bank were wanted together, by width
            in bytes; counted where `counting`.
    """

    def __init__(self, name: str, blocks: int, size: int, dtype: str, *, counting: bool = False) -> None:
        super().__init__(name, np.zeros(blocks * size, dtype))
        self._size, self._rows = size, np.repeat(np.arange(blocks) * size, THREADS)
        self._writer = np.full(self.data.size, -1)
        self._reader = np.full(self.data.size, -1)
        self._arriving = np.zeros(self.data.size, dtype=np.int32)
        self._counting = counting
        self.conflicts: Counter[int] = Counter()

    def barrier(self, blocks: Mask) -> None:
        """The threads of these blocks meet."""
        self._writer.reshape(len(blocks), -1)[blocks] = -1
        self._reader.reshape(len(blocks), -1)[blocks] = -1

    def at(self, index: Values, mask: Mask) -> Values:
        index = np.where(mask, index, 0)
        if index.min() < 0 or index.max() >= self._size:
            raise UndefinedError(f"{self.name}: index {index.min()} to {index.max()} of {self._size} elements")
        return self._rows + index

    def note(self, at: Values, mask: Mask, *, store: bool, together: bool = False) -> None:
        places = at[mask].reshape(-1)
        who = np.full(places.shape, _SEVERAL) if together else _threads(mask, at)
        if np.any(self._arriving[places]):
            raise UndefinedError(f"{self.name}: no wait for an asynchronous copy")
        if self._counting:
            first = at[:, 0] if at.ndim > 1 else at
            width = self.data.itemsize * (at.shape[1] if at.ndim > 1 else 1)
            self.conflicts[width] += surplus_turns((first - self._rows) * self.data.itemsize, mask, width)
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
            self._reader[places] = np.where((before == -1) | (before == who), who, _SEVERAL)

    def expect(self, at: NDArray[np.intp], mask: Mask) -> None:
        counting, self._counting = self._counting, False
        self.note(at, mask, store=True)
        self._counting = counting
        self._arriving[at[mask]] += 1

    def put(self, at: NDArray[np.intp], data: Array, mask: Mask) -> None:
        places = at[mask]
        self._arriving[places] = np.maximum(self._arriving[places] - 1, 0)
        super().put(at, data, mask)


def surplus_turns(start: Values, mask: Mask, width: int) -> int:
    """How often, beyond once, banks are asked in an access of `width` bytes from byte `start` of a block's memory.

    Threads take part in groups that fetch at most one word of every bank: a warp of words or less, half a warp of
    8 bytes, a quarter of 16.  Threads that want the same word share it.
    """
    lanes = min(LANES, BANKS * 4 // width)
    words = (start[:, None] + np.arange(0, max(width, 4), 4)) // 4
    words = np.where(mask[:, None], words, -1).reshape(-1, lanes * words.shape[1])
    words.sort(axis=1)
    fresh = np.ones(words.shape, dtype=bool)
    fresh[:, 1:] = words[:, 1:] != words[:, :-1]
    fresh &= words >= 0
    group = np.repeat(np.arange(len(words)), words.shape[1]).reshape(words.shape)
    asked = np.bincount((group * BANKS + words % BANKS)[fresh], minlength=len(words) * BANKS)
    return int(np.maximum(asked.reshape(-1, BANKS).max(axis=1) - 1, 0).sum())


class Order:
    """What orders the blocks of a launch: stores behind a fence and a barrier, announced by an arrival at a counter,
    may be read by a block that arrives there later, behind a barrier and a fence of its own."""

    def __init__(self, blocks: int) -> None:
        self.seen = np.zeros((blocks, blocks), dtype=np.int8)
        self._arrived: dict[int, list[int]] = {}

    def fence(self, memories: Sequence[Memory], mask: Mask) -> None:
        for memory in memories:
            mine = (memory.writer >= 0) & (memory.state == _STORED)
            memory.state[mine & mask[memory.writer]] = _FENCED
        blocks: Mask = np.asarray(mask.reshape(-1, THREADS).any(axis=1))
        self.seen[blocks[:, None] & (self.seen == _SHOWN)] = _SEEN

    def barrier(self, memories: Sequence[Memory], blocks: Mask) -> None:
        for memory in memories:
            fenced = np.flatnonzero(memory.state == _FENCED)
            memory.state[fenced[blocks[memory.writer[fenced] // THREADS]]] = _TOGETHER
        self.seen[blocks[:, None] & (self.seen == _ARRIVED)] = _SHOWN

    def arrive(self, memories: Sequence[Memory], thread: int, counter: int) -> None:
        block = thread // THREADS
        for memory in memories:
            mine = memory.writer // THREADS == block
            ready = mine & ((memory.state == _TOGETHER) | ((memory.state == _FENCED) & (memory.writer == thread)))
            memory.state[ready & (memory.writer >= 0)] = _PUBLISHED
        before = self._arrived.setdefault(counter, [])
        self.seen[block, before] = np.maximum(self.seen[block, before], _ARRIVED)
        before.append(block)
