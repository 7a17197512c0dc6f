"""Code generation for NVIDIA GPUs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import InternalError, VerificationError
from qcompile.ir import Graph
from qcompile.target.backend import Measurement
from qcompile.target.model import Target
from qcompile.target.program import Buffer, Kernel, Program
from targets._tvm.context import Constant, Context, Emitted, Scratch, Value
from targets._tvm.cpu import GENERIC, generator_hash
from targets._tvm.isa import SCALAR
from targets._tvm.kernels import generic
from targets._tvm.library import Blob, FunctionTable
from targets.cuda import (
    block,
    build,
    depthwise,
    driver,
    image_sum,
    images,
    matrix_mma,
    printer,
    share,
    tiles,
    vector,
    winograd_mma,
)
from targets.cuda.build import Image
from targets.cuda.devices import DEVICES
from targets.cuda.estimate import estimate
from targets.cuda.executable import BINARY, DESCRIPTION, SOURCE, CudaExecutable, Launch
from targets.cuda.matrix import matrix_of
from targets.cuda.preference import preferred
from targets.cuda.runtime import PRELUDE


@dataclass(frozen=True)
class Generated:
    """A program as CUDA.

    Attributes:
        kernels: the definition of each, by symbol.
        launches: in execution order.
        blob: packed parameters.
        own: bytes for each sample that kernels share one after the other: `scratch`, and `zeroed`, which every kernel
            finds and leaves zero.
    """

    kernels: Mapping[str, str]
    launches: tuple[Launch, ...]
    blob: Blob
    own: Mapping[str, int]

    @property
    def text(self) -> str:
        """All of the source."""
        return "\n".join([PRELUDE, *self.kernels.values()])


class CudaBackend:
    """Implements `qcompile.target.backend.Backend`: tensor cores where it can, one thread an element elsewhere."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.architectures = target.options["architectures"].split()
        self._winograd = {tile.name: tile for tile in winograd_mma.TILES}
        self._depthwise = {tile.name: tile for tile in depthwise.TILES}
        self._vectors = {one.name: one for one in vector.VECTORS}

    def fingerprint(self) -> str:
        return f"{build.compiler_version()}, generator {generator_hash()}"

    def device_name(self) -> str:
        """The GPU that is here."""
        gpu = driver.device()
        return f"{gpu.name} ({gpu.architecture})"

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        context = Context(kernel, program, SCALAR)
        if (matrix := matrix_of(context)) is None:
            return self._apart(context)
        forms = matrix_mma.forms(context, self.architectures)
        products = tuple(v.name for v in preferred(matrix.shape, forms, DEVICES[self.architectures[0]]))
        winograd = self._winograd if winograd_mma.is_legal(context) else ()
        return (*products, *winograd)

    def _apart(self, context: Context) -> tuple[str, ...]:
        """Of a kernel that is no matrix product."""
        if image_sum.is_legal(context):
            return (image_sum.NAME, GENERIC)
        found = depthwise.legal_tiles(context) or vector.legal_vectors(context.kernel, context.program)
        return (*(one.name for one in found), GENERIC)

    def emit(self, kernel: Kernel, program: Program) -> Emitted:
        """Generate one kernel with its chosen variant, or the preferred legal one where none is chosen."""
        name = kernel.variant or self.variants(kernel, program)[0]
        context = Context(kernel, program, SCALAR)
        if (variant := tiles.parse(name)) and (matrix := matrix_of(context)):
            return matrix_mma.emit(context, matrix, variant)
        if name in self._winograd:
            return winograd_mma.emit(context, self._winograd[name])
        if name in self._depthwise:
            return depthwise.emit(context, self._depthwise[name])
        if name in self._vectors:
            return vector.emit(kernel, program, self._vectors[name])
        if name == image_sum.NAME:
            return image_sum.emit(context)
        if name != GENERIC:
            raise InternalError(f"target {self.target.name} has no kernel variant {name!r}", node=kernel.name)
        return generic.emit(context)

    def estimate(self, kernel: Kernel, program: Program) -> float:
        """As `qcompile.target.backend.Estimating`, on the device that stands for the oldest architecture."""
        emitted = self.emit(kernel, program)
        printed = printer.Kernel(emitted.func)
        gpu = DEVICES[self.architectures[0]]
        return estimate(printed.func, printed.blocks, emitted, program, gpu).seconds

    def generate(self, program: Program) -> Generated:
        """All kernels of a program, equal ones once, and those that differ in numbers only (see `share`)."""
        table, blob = FunctionTable(), Blob()
        calls = [(table.symbol(e.func), e) for e in (self.emit(k, program) for k in program.kernels)]
        printed = {str(f.attrs["global_symbol"]): printer.Kernel(f) for f in table.functions}
        made = dict(zip(printed, share.share([kernel.template for kernel in printed.values()]), strict=True))
        launches = []
        own = {"scratch": 0, "zeroed": 0}
        for symbol, emitted in calls:
            pointers: list[tuple[str, int]] = []
            for argument in emitted.arguments:
                match argument:
                    case Constant():
                        pointers.append(("params", blob.add(argument)))
                    case Value(name):
                        pointers.append(_place(program.buffers[name]))
                    case Scratch(size, zeroed):
                        place = "zeroed" if zeroed else "scratch"
                        own[place] = max(own[place], -(-size // self.target.alignment) * self.target.alignment)
                        pointers.append((place, 0))
            kernel = made[symbol]
            launches.append(Launch(kernel.name, printed[symbol].blocks, tuple(pointers), kernel.numbers))
        return Generated({kernel.name: kernel.text for kernel in made.values()}, tuple(launches), blob, own)

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        generated = self.generate(program)
        directory.mkdir(parents=True, exist_ok=True)
        made = build.compile_kernels(PRELUDE, generated.kernels, self.architectures)
        self._write(generated, program, directory, made)
        return {
            "compiler": build.compiler_version(),
            "target": " ".join(self.architectures),
            "functions": str(len(generated.kernels)),
        }

    def _write(
        self, generated: Generated, program: Program, directory: Path, made: Mapping[str, Mapping[str, Image]]
    ) -> None:
        binary, described_images = images.pack(made)
        (directory / SOURCE).write_text(generated.text)
        (directory / BINARY).write_bytes(binary)
        described = {
            "threads": block.THREADS,
            "arena_bytes": -(-program.arena_bytes // self.target.alignment) * self.target.alignment,
            "params_bytes": generated.blob.size,
            "own_bytes": dict(generated.own),
            "launches": [launch.to_json() for launch in generated.launches],
            "images": described_images,
            "constants": [[offset, *recipe.to_json()] for offset, recipe in generated.blob.placed],
        }
        (directory / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")

    def load(self, directory: Path, graph: Graph) -> CudaExecutable:
        return CudaExecutable(directory, graph)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        """Of the PTX that the machine code of every architecture was made of.

        With a program its source must be the one in `directory`.
        """
        text = (directory / SOURCE).read_text()
        if program is not None and self.generate(program).text != text:
            raise VerificationError(
                f"{directory / SOURCE} is not the source that this program gives",
                hint="it was made by another version of qcompile, or changed since",
            )
        described = json.loads((directory / DESCRIPTION).read_text())["images"]
        found = []
        for listing in images.listings((directory / BINARY).read_bytes(), described):
            found += build.float_operations(listing)
        return found

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        """Time each kernel alone, many times in one graph; all are compiled first, for the device that is here.

        Raises:
            DeviceError: there is no GPU here.
        """
        architecture = driver.device().architecture
        programs = [replace(program, kernels=(kernel,)) for kernel, program in works]
        generated = [self.generate(program) for program in programs]
        every = {name: text for one in generated for name, text in one.kernels.items()}
        compiled = build.compile_kernels(PRELUDE, every, [architecture])[architecture]
        found = []
        for program, one in zip(programs, generated, strict=True):
            with TemporaryDirectory() as folder:
                mine = {architecture: {name: compiled[name] for name in one.kernels}}
                self._write(one, program, Path(folder), mine)
                found.append(CudaExecutable(Path(folder), program.graph).measure_kernel(threads, program.resident))
        return found


def _place(buffer: Buffer) -> tuple[str, int]:
    return ("arena", buffer.offset) if buffer.place == "arena" else (f"{buffer.place}{buffer.offset}", 0)
