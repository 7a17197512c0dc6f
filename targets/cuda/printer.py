"""From kernels to CUDA text: the C printer, and what only a device has."""

from __future__ import annotations

from typing import Any

from tvm import tirx as tir

from targets.c.printer import BINARY, Printer, c_type, walk
from targets.cuda import share
from targets.cuda.block import BLOCK, BLOCKS_ATTRIBUTE, FOLDED_ATTRIBUTE, LANE, SAMPLE, SAMPLES, THREADS, stride_name
from targets.cuda.grid import THREAD, spread


class DevicePrinter(Printer):
    """Adds shared memory, addresses and calls of device functions."""

    def __init__(self, func: Any, name: str) -> None:
        super().__init__(func, name)
        self._structural: set[str] = set()
        """Variables that addresses and control flow depend on; the text is made backwards, readers first."""
        self._fixed = False
        """Whether what is being printed is part of such a value: then its literals stay."""

    def text(self) -> str:
        """The definition, inlined into its kernel, as a template (see `share`)."""
        body = self._block(self._func.body)
        named = zip(pointer_types(self._func), _parameters(self._func), strict=True)
        listed = [f"{t}__restrict__ {b.name}" for t, b in named]
        if FOLDED_ATTRIBUTE in (self._func.attrs or {}):
            listed += [f"int64_t {stride_name(b)}" for b in _parameters(self._func)]
        declared = share.parameters(", ".join(listed))
        return "\n".join([f"Q_DEVICE void {self._name}({declared})", "{", *body, "}"]) + "\n"

    def _control(self, e: Any) -> str:
        before, self._fixed = self._fixed, True
        try:
            return super()._control(e)
        finally:
            self._fixed = before

    def _element(self, buffer: Any, indices: Any) -> str:
        (index,) = indices
        name = str(buffer.name)
        self._uses[name] += 1
        return f"{name}[{self._control(index)}]"

    def _statement(self, s: Any) -> list[str]:
        if isinstance(s, tir.Bind) and str(s.var.name) in self._structural:
            before, self._fixed = self._fixed, True
            try:
                return super()._statement(s)
            finally:
                self._fixed = before
        if isinstance(s, tir.AllocBuffer) and s.buffer.scope() == "shared":
            (size,) = s.buffer.shape
            return [f"__shared__ __align__(16) {c_type(str(s.buffer.dtype))} {s.buffer.name}[{int(size)}];"]
        if isinstance(s, tir.Evaluate) and _operator(s.value) == "call_extern":
            return [f"{self._expr(s.value)};"]
        if isinstance(s, tir.For) and s.kind == tir.ForKind.UNROLLED:
            return ["#pragma unroll", *super()._statement(s)]
        return super()._statement(s)

    def _expr(self, e: Any) -> str:
        if isinstance(e, tir.Var) and self._fixed:
            self._structural.add(str(e.name))
        if isinstance(e, tir.IntImm) and not self._fixed and str(e.ty.dtype) in ("int32", "int64"):
            return share.marked(int(e.value), str(e.ty.dtype))
        if isinstance(e, tir.Div | tir.Mod | tir.FloorDiv | tir.FloorMod) or _is_wide_shift(e):
            return f"({self._expr(e.a)} {BINARY[type(e)]} {self._control(e.b)})"
        operator = _operator(e)
        if operator == "call_extern":
            return f"{e.args[0].value}({', '.join(self._argument(e, a) for a in e.args[1:])})"
        if operator == "address_of":
            return f"&{self._expr(e.args[0])}"
        return super()._expr(e)

    def _argument(self, call: Any, e: Any) -> str:
        """Of a device function: it may need its literals when it is compiled, all but those that are stored."""
        stored = str(call.args[0].value) in _STORING
        return self._control(e) if isinstance(e, tir.IntImm) and not stored else self._expr(e)


_STORING = frozenset({"q_fill16", "q_put", "q_put16"})
"""Device functions that store their arguments."""


def _is_wide_shift(e: Any) -> bool:
    """A shift to the right of 64 bits, which by a constant is cheaper."""
    return isinstance(e, tir.RShift) and str(e.ty.dtype) == "int64" and isinstance(e.b, tir.IntImm)


def _parameters(func: Any) -> list[Any]:
    """The buffers of the pointer parameters, in order: the header declares one for each."""
    return [s.buffer for s in func.body.seq if isinstance(s, tir.DeclBuffer)]


def pointer_types(func: Any) -> list[str]:
    """`const uint8_t *` or `int32_t *` of every pointer parameter: const where the function only reads."""
    stored: set[str] = set()

    def visit(stmt: Any) -> None:
        if isinstance(stmt, tir.BufferStore):
            stored.add(str(stmt.buffer.name))
        elif isinstance(stmt, tir.Evaluate) and _operator(stmt.value) == "call_extern" and len(stmt.value.args) > 1:
            # Device functions that store do so through their first argument.
            stored.add(str(stmt.value.args[1].args[0].source.name))

    walk(func.body, visit)
    return [f"{'' if str(b.name) in stored else 'const '}{c_type(str(b.dtype))} *" for b in _parameters(func)]


def _operator(e: Any) -> str:
    return str(getattr(getattr(e, "op", None), "name", "")).rpartition(".")[2]


class Kernel:
    """A kernel as a `__global__` function `name(a0, stride0, a1, stride1, …, numbers…)`.

    Every pointer comes with the bytes from one sample to the next; samples are the grid's second dimension.

    Attributes:
        func: what each thread runs.
        blocks: of the grid's first dimension; blocks have THREADS threads.
        template: the definition, for `share`.
    """

    def __init__(self, func: Any) -> None:
        written_for_blocks = BLOCKS_ATTRIBUTE in (func.attrs or {})
        if written_for_blocks:
            self.func, self.blocks = func, int(func.attrs[BLOCKS_ATTRIBUTE])
            places = {
                BLOCK: "(int32_t)blockIdx.x", LANE: "(int32_t)threadIdx.x",
                SAMPLE: "(int32_t)blockIdx.y", SAMPLES: "(int32_t)gridDim.y",
            }  # fmt: skip
        else:
            self.func, self.blocks = spread(func)
            places = {
                THREAD: "(int32_t)(blockIdx.x * blockDim.x + threadIdx.x)",
            }
        types = pointer_types(func)
        body = DevicePrinter(self.func, f"{share.NAME}_body").text()
        names = [f"a{i}" for i in range(len(types))]
        declared = ", ".join(f"{t}{n}, int64_t s{i}" for i, (t, n) in enumerate(zip(types, names, strict=True)))
        if FOLDED_ATTRIBUTE in (func.attrs or {}):
            moved = ", ".join([*names, *[f"s{i}" for i in range(len(names))]])
        else:
            moved = ", ".join(
                f"({t})((const uint8_t *){n} + blockIdx.y * s{i})"
                for i, (t, n) in enumerate(zip(types, names, strict=True))
            )
        defined = "".join(f"#define {key} ({value})\n" for key, value in places.items())
        undefined = "".join(f"#undef {key}\n" for key in places)
        self.template = (
            f"{defined}{body}{undefined}\n"
            f'extern "C" __global__ void __launch_bounds__({THREADS}) {share.NAME}({share.parameters(declared)}) {{\n'
            f"  {share.NAME}_body({share.arguments(moved)});\n}}\n"
        )
