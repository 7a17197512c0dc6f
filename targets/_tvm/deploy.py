"""A program as one relocatable object file and a constant array of packed parameters."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from qcompile.errors import TargetError
from qcompile.ir import Array
from qcompile.target.deployment import Deployment
from qcompile.target.program import Kernel, Program
from targets._tvm.build import compile_functions
from targets._tvm.context import Constant, Emitted
from targets._tvm.cross import find_linker
from targets._tvm.elf import read_object
from targets._tvm.library import Assembled, FunctionTable, assemble
from targets._tvm.runner import ALIGNMENT

if TYPE_CHECKING:
    from targets._tvm.cpu import CpuBackend

_IN_A_LINE = 24


def objects(backend: CpuBackend, program: Program, prefix: str) -> Deployment:
    """The program's kernels as `PREFIX_kernels.o`, which shows one function."""
    entry = f"{prefix}_kernels"
    emitted = [_emit(backend, kernel, program) for kernel in program.kernels]
    assembled = assemble(program, emitted, entry, FunctionTable(f"{prefix}_k"))
    codes = compile_functions(assembled.functions, backend.options)
    merged = merge([code.object for code in codes], entry, backend.options)
    facts = read_object(merged)
    graph = program.graph
    ports = ", ".join(["const void *"] * len(graph.inputs) + ["void *"] * len(graph.outputs))
    return Deployment(
        parameters="\n".join(
            constant_lines("uint8_t", f"{prefix}_parameters", parameter_blob(assembled, program), ALIGNMENT)
        ),
        code=f"/* {entry}.o */\nint {entry}(const void *parameters, void *arena, {ports});\n",
        objects={f"{entry}.o": merged},
        call=f"{entry}({prefix}_parameters, {prefix}_arena, {{ports}})",
        arena_bytes=assembled.arena_bytes,
        arena_alignment=ALIGNMENT,
        parameter_bytes=assembled.params_bytes,
        object_bytes=facts.memory_bytes,
        undefined=facts.undefined,
        compiler=Path(find_linker(backend.options)[0]).name,
        target=str(backend.options.get("mtriple", "")),
    )


def _emit(backend: CpuBackend, kernel: Kernel, program: Program) -> Emitted:
    """A kernel with its chosen implementation; where none is chosen, the one with the smallest parameters.

    Winograd's weights, say, take up to eight times the bytes, which a processor with little memory does not have.
    """
    chosen = [kernel.variant] if kernel.variant else backend.variants(kernel, program)
    found = [backend.emit(replace(kernel, variant=name), program, threaded=False) for name in chosen]
    return min(found, key=lambda one: sum(a.array.nbytes for a in one.arguments if isinstance(a, Constant)))


def parameter_blob(assembled: Assembled, program: Program) -> Array:
    """Everything kernels read, at its place: uint8[params_bytes], zeros in the gaps and behind the end."""
    blob = np.zeros(assembled.params_bytes, dtype=np.uint8)
    for offset, recipe in assembled.constants:
        packed = recipe.pack(program.graph.consts)
        blob[offset : offset + packed.nbytes] = packed.reshape(-1).view(np.uint8)
    return blob


def merge(parts: Sequence[bytes], entry: str, options: Mapping[str, str]) -> bytes:
    """One relocatable object without what the entry does not reach, which is the only symbol it shows.

    Raises:
        TargetError: there is no linker for the target, or it cannot do this.
    """
    linker = find_linker(options)
    with TemporaryDirectory() as folder:
        names = []
        for i, part in enumerate(parts):
            names.append(f"{i:04d}.o")
            (Path(folder) / names[-1]).write_bytes(part)
        flags = ["-r", "-nostdlib", "-Wl,--gc-sections", f"-Wl,-e,{entry}", "-Wl,--build-id=none", "-o", "merged.o"]
        done = subprocess.run([*linker, *flags, *names], capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise TargetError(
                f"{linker[0]} cannot join object files: {done.stderr.strip()[-1000:]}",
                hint="export needs the GNU linker: install gcc and binutils for the target",
            )
        for strip in _strippers(linker[0], entry):
            subprocess.run([*strip, "merged.o"], capture_output=True, check=False, cwd=folder)
        return (Path(folder) / "merged.o").read_bytes()


_DROPPED = (".eh_frame", ".rela.eh_frame", ".ARM.exidx", ".rel.ARM.exidx", ".ARM.attributes")
"""Sections nobody needs: nothing here unwinds, and kernels pass no floats, so every float ABI may call them."""


def _strippers(linker: str, entry: str) -> Iterator[list[str]]:
    """objcopy beside the linker, if it is there: without it the kernels' names stay visible, with their prefix."""
    name = re.sub(r"(gcc|g\+\+|clang|cc)$", "objcopy", Path(linker).name)
    if found := shutil.which(str(Path(linker).parent / name)) or shutil.which(name):
        removed = [flag for section in _DROPPED for flag in ("-R", section)]
        yield [found, "--strip-unneeded", f"--keep-global-symbol={entry}", *removed]


def constant_lines(element: str, name: str, array: Array, alignment: int = 0) -> Iterator[str]:
    """`static const` definition of a flat array."""
    aligned = f" __attribute__((aligned({alignment})))" if alignment else ""
    yield f"static const {element} {name}[{array.size}]{aligned} = {{"
    flat = array.reshape(-1).tolist()
    for start in range(0, len(flat), _IN_A_LINE):
        line = ",".join(map(str, flat[start : start + _IN_A_LINE])) + ","
        # The smallest int32 has no literal.
        yield line.replace("-2147483648", "INT32_MIN")
    yield "};"
