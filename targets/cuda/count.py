"""What a kernel does, counted in its statements: instructions of each kind by one thread, and bytes it moves."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tvm import tirx as tir
from tvm.ir.expr import TensorLoad

MMA_MACS = {"q_mma": 16 * 8 * 32, "q_mma_s4": 16 * 8 * 64}
"""Multiply-adds of a matrix instruction, which a warp does together."""

_DIVISIONS = (tir.Div, tir.Mod, tir.FloorDiv, tir.FloorMod)
_OPERATIONS = (
    tir.Add, tir.Sub, tir.Mul, tir.Min, tir.Max, tir.RShift, tir.LShift, tir.BitwiseAnd, tir.BitwiseOr, tir.Cast,
    tir.EQ, tir.NE, tir.LT, tir.LE, tir.GT, tir.GE,
)  # fmt: skip
_WIDE, _WIDE_PRODUCT, _DIVISION = 2, 4, 4
"""Instructions of 32 bits that one operation of 64 bits, a product of them, or a division by a constant takes."""
_SIZE = re.compile(r"(\d+)$")
_WORD = 4
_REGISTERS = dict.fromkeys(("q_put4", "q_add4", "q_ldmatrix4"), 4 * _WORD)
"""Bytes moved by functions whose names count registers."""


class Count:
    """What one thread does.

    Attributes:
        mma, mma_s4: matrix instructions (a warp's count is a thread's).
        dot4: dot products of four bytes.
        alu: other instructions on 32-bit integers; addresses are not counted, compilers share them.
        accesses: loads, stores and copies, of any memory.
        shared_bytes, global_bytes: that they move.
        barriers: of the block.
        shared_size: bytes of shared memory of the block.
    """

    def __init__(self, func: Any) -> None:
        self._shared: set[str] = set()
        self._local: set[str] = set()
        self._found: Counter[str] = Counter()
        self.shared_size = 0
        self._statement(func.body, 1)

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._found[name]

    def _statement(self, s: Any, times: int) -> None:
        if isinstance(s, tir.SeqStmt):
            for one in s.seq:
                self._statement(one, times)
        elif isinstance(s, tir.For):
            extent = self._value(s.extent)
            self._found["alu"] += times * extent if s.kind != tir.ForKind.UNROLLED else 0
            self._statement(s.body, times * extent)
        elif isinstance(s, tir.IfThenElse):
            self._statement(s.then_case, times)
        elif isinstance(s, tir.AllocBuffer):
            (self._shared if s.buffer.scope() == "shared" else self._local).add(str(s.buffer.name))
            if s.buffer.scope() == "shared":
                self.shared_size += int(s.buffer.shape[0]) * _itemsize(s.buffer)
        elif isinstance(s, tir.BufferStore):
            self._access(s.buffer, _itemsize(s.buffer), times)
            self._expr(s.value, times)
        elif isinstance(s, tir.Bind | tir.Evaluate):
            self._expr(s.value, times)

    def _access(self, buffer: Any, size: int, times: int) -> None:
        if str(buffer.name) in self._local:
            return
        self._found["accesses"] += times
        self._found["shared_bytes" if str(buffer.name) in self._shared else "global_bytes"] += size * times

    def _expr(self, e: Any, times: int) -> None:
        if isinstance(e, TensorLoad):
            self._access(e.source, _itemsize(e.source), times)
        elif isinstance(e, _DIVISIONS):
            self._found["alu"] += _DIVISION * times
            self._expr(e.a, times)
        elif isinstance(e, _OPERATIONS):
            wide = str(e.ty.dtype) == "int64"
            cost = _WIDE_PRODUCT if wide and isinstance(e, tir.Mul) else _WIDE if wide else 1
            self._found["alu"] += cost * times
            for part in (e.value,) if isinstance(e, tir.Cast) else (e.a, e.b):
                self._expr(part, times)
        elif isinstance(e, tir.Select):
            self._found["alu"] += times
            for part in (e.condition, e.true_value, e.false_value):
                self._expr(part, times)
        elif hasattr(e, "args"):
            self._call(e, times)

    def _call(self, e: Any, times: int) -> None:
        operator = str(getattr(e.op, "name", "")).rpartition(".")[2]
        if operator == "address_of":
            return
        if operator != "call_extern":
            self._found["alu"] += times
            for part in e.args:
                self._expr(part, times)
            return
        name, arguments = str(e.args[0].value), e.args[1:]
        if name in MMA_MACS or name == "q_dot4":
            self._found[name.removeprefix("q_")] += times
        elif name == "q_sync":
            self._found["barriers"] += times
        elif name.startswith("q_land"):
            # What it does is part of `q_fetch`, or nothing where copies are asynchronous.
            return
        else:
            self._found["alu"] += times
            size = int(found[1]) if (found := _SIZE.search(name)) else _WORD
            size = _REGISTERS.get(name, size)
            for argument in arguments:
                if getattr(getattr(argument, "op", None), "name", "").endswith("address_of"):
                    self._access(argument.args[0].source, max(size, _WORD), times)
        for argument in arguments:
            self._expr(argument, times)

    @staticmethod
    def _value(e: Any) -> int:
        """A loop's length; what is known on the device only counts as 1."""
        return int(e.value) if isinstance(e, tir.IntImm) else 1


def _itemsize(buffer: Any) -> int:
    digits = _SIZE.search(str(buffer.dtype))
    return int(digits[1]) // 8 if digits else 1
