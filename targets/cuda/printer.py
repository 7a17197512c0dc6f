"""From kernels to CUDA text: the C printer, and what only a device has."""

from __future__ import annotations

from typing import Any

from tvm import tirx as tir

from targets.c.printer import Printer, c_type, walk
from targets.cuda.conv_mma import BLOCK, BLOCKS_ATTRIBUTE, LANE, THREADS
from targets.cuda.grid import STRIDE, THREAD, spread
from targets.cuda.runtime import PRELUDE


class DevicePrinter(Printer):
    """Adds shared memory, addresses and calls of device functions."""

    def text(self) -> str:
        """The definition, inlined into its kernel."""
        body = self._block(self._func.body)
        named = zip(pointer_types(self._func), _parameters(self._func), strict=True)
        parameters = ", ".join(f"{t}__restrict__ {b.name}" for t, b in named)
        return "\n".join([f"Q_DEVICE void {self._name}({parameters})", "{", *body, "}"]) + "\n"

    def _statement(self, s: Any) -> list[str]:
        if isinstance(s, tir.AllocBuffer) and s.buffer.scope() == "shared":
            (size,) = s.buffer.shape
            return [f"__shared__ __align__(16) {c_type(str(s.buffer.dtype))} {s.buffer.name}[{int(size)}];"]
        if isinstance(s, tir.Evaluate) and _operator(s.value) == "call_extern":
            return [f"{self._expr(s.value)};"]
        if isinstance(s, tir.For) and s.kind == tir.ForKind.UNROLLED:
            return ["#pragma unroll", *super()._statement(s)]
        return super()._statement(s)

    def _expr(self, e: Any) -> str:
        operator = _operator(e)
        if operator == "call_extern":
            return f"{e.args[0].value}({', '.join(self._expr(a) for a in e.args[1:])})"
        if operator == "address_of":
            return f"&{self._expr(e.args[0])}"
        return super()._expr(e)


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
    """A kernel as a `__global__` function `name(a0, stride0, a1, stride1, …)`.

    Every pointer comes with the bytes from one sample to the next; samples are the grid's second dimension.

    Attributes:
        blocks: of the grid's first dimension; blocks have THREADS threads.
        text: the definition.
    """

    def __init__(self, func: Any, name: str) -> None:
        self.name = name
        written_for_blocks = BLOCKS_ATTRIBUTE in (func.attrs or {})
        if written_for_blocks:
            self.func, self.blocks = func, int(func.attrs[BLOCKS_ATTRIBUTE])
            places = {BLOCK: "(int32_t)blockIdx.x", LANE: "(int32_t)threadIdx.x"}
        else:
            self.func, self.blocks = spread(func)
            places = {
                THREAD: "(int32_t)(blockIdx.x * blockDim.x + threadIdx.x)",
                STRIDE: "(int32_t)(gridDim.x * blockDim.x)",
            }
        types = pointer_types(func)
        body = DevicePrinter(self.func, f"{name}_body").text()
        names = [f"a{i}" for i in range(len(types))]
        parameters = ", ".join(f"{t}{n}, int64_t s{i}" for i, (t, n) in enumerate(zip(types, names, strict=True)))
        moved = ", ".join(
            f"({t})((const uint8_t *){n} + blockIdx.y * s{i})"
            for i, (t, n) in enumerate(zip(types, names, strict=True))
        )
        defined = "".join(f"#define {key} ({value})\n" for key, value in places.items())
        undefined = "".join(f"#undef {key}\n" for key in places)
        self.text = (
            f"{defined}{body}{undefined}\n"
            f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({parameters}) {{\n'
            f"  {name}_body({moved});\n}}\n"
        )


def source_text(kernels: list[Kernel]) -> str:
    """One file with all kernels."""
    return "\n".join([PRELUDE, *(kernel.text for kernel in kernels)])
