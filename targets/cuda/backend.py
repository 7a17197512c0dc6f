"""Code generation for NVIDIA GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import InternalError, VerificationError
from qcompile.ir import Graph
from qcompile.target.backend import Measurement
from qcompile.target.model import Target
from qcompile.target.program import Buffer, Kernel, Program
from targets._tvm.context import Constant, Context, Emitted, Value
from targets._tvm.cpu import GENERIC, generator_hash
from targets._tvm.isa import PortableIsa
from targets._tvm.kernels import generic
from targets._tvm.library import Blob, FunctionTable
from targets.cuda import build, conv_mma, driver, printer
from targets.cuda.executable import BINARY, DESCRIPTION, SOURCE, CudaExecutable, Launch

SCALAR = PortableIsa(lanes=1)


@dataclass(frozen=True)
class Generated:
    """A program as CUDA.

    Attributes:
        text: the source of all distinct kernels.
        launches: in execution order.
        blob: packed parameters.
    """

    text: str
    launches: tuple[Launch, ...]
    blob: Blob


class CudaBackend:
    """Implements `qcompile.target.backend.Backend`: tensor cores where it can, one thread an element elsewhere."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.architectures = target.options["architectures"].split()
        self._tiles = {tile.name: tile for tile in conv_mma.TILES}

    def fingerprint(self) -> str:
        return f"{build.compiler_version()}, generator {generator_hash()}"

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        legal = conv_mma.is_legal(Context(kernel, program, SCALAR))
        return tuple(self._tiles) if legal else (GENERIC,)

    def emit(self, kernel: Kernel, program: Program) -> Emitted:
        """Generate one kernel with its chosen variant, or the preferred legal one where none is chosen."""
        name = kernel.variant or self.variants(kernel, program)[0]
        context = Context(kernel, program, SCALAR)
        if name in self._tiles:
            return conv_mma.emit(context, self._tiles[name])
        if name != GENERIC:
            raise InternalError(f"target {self.target.name} has no kernel variant {name!r}", node=kernel.name)
        return generic.emit(context)

    def generate(self, program: Program) -> Generated:
        """All kernels of a program, equal ones once."""
        table, blob = FunctionTable(), Blob()
        calls = [(table.symbol(e.func), e) for e in (self.emit(k, program) for k in program.kernels)]
        kernels = {str(f.attrs["global_symbol"]): f for f in table.functions}
        made = {name: printer.Kernel(func, name) for name, func in kernels.items()}
        launches = []
        for symbol, emitted in calls:
            pointers = []
            for argument in emitted.arguments:
                match argument:
                    case Constant():
                        pointers.append(("params", blob.add(argument)))
                    case Value(name):
                        pointers.append(_place(program.buffers[name]))
                    case _:
                        raise InternalError("kernels for GPUs have no scratch memory")
            launches.append(Launch(symbol, made[symbol].blocks, tuple(pointers)))
        return Generated(printer.source_text(list(made.values())), tuple(launches), blob)

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        generated = self.generate(program)
        directory.mkdir(parents=True, exist_ok=True)
        self._write(generated, program, directory, build.fat_binary(generated.text, self.architectures))
        return {
            "compiler": build.compiler_version(),
            "target": " ".join(self.architectures),
            "functions": str(generated.text.count("__global__")),
        }

    def _write(self, generated: Generated, program: Program, directory: Path, binary: bytes) -> None:
        (directory / SOURCE).write_text(generated.text)
        (directory / BINARY).write_bytes(binary)
        described = {
            "threads": conv_mma.THREADS,
            "arena_bytes": -(-program.arena_bytes // self.target.alignment) * self.target.alignment,
            "params_bytes": generated.blob.size,
            "launches": [launch.to_json() for launch in generated.launches],
            "constants": [[offset, *recipe.to_json()] for offset, recipe in generated.blob.placed],
        }
        (directory / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")

    def load(self, directory: Path, graph: Graph) -> CudaExecutable:
        return CudaExecutable(directory, graph)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        """Of the PTX of the oldest and the newest architecture, compiled again from the source beside the binary.

        With a program its source must be the one in `directory`.
        """
        text = (directory / SOURCE).read_text()
        if program is not None and self.generate(program).text != text:
            raise VerificationError(
                f"{directory / SOURCE} is not the source that this program gives",
                hint="it was made by another version of qcompile, or changed since",
            )
        found = []
        for architecture in dict.fromkeys((self.architectures[0], self.architectures[-1])):
            found += build.float_operations(build.ptx(text, architecture))
        return found

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        """Time each kernel as the only one of a graph; compiles several at a time, for the device that is here.

        Raises:
            DeviceError: there is no GPU here.
        """
        architecture = driver.Device().architecture
        programs = [replace(program, kernels=(kernel,)) for kernel, program in works]
        generated = [self.generate(program) for program in programs]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            binaries = list(pool.map(lambda g: build.fat_binary(g.text, [architecture]), generated))
        found = []
        for program, one, binary in zip(programs, generated, binaries, strict=True):
            with TemporaryDirectory() as folder:
                self._write(one, program, Path(folder), binary)
                found.append(CudaExecutable(Path(folder), program.graph).measure(threads, 0))
        return found


def _place(buffer: Buffer) -> tuple[str, int]:
    return ("arena", buffer.offset) if buffer.place == "arena" else (f"{buffer.place}{buffer.offset}", 0)
