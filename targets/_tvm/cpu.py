"""The backend every CPU target shares: variants by legality, kernels by dispatch, one library per program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import DeviceError, InternalError, VerificationError
from qcompile.ir import Graph
from qcompile.target.backend import Backend, Executable, Measurement
from qcompile.target.deployment import Deployment
from qcompile.target.device import Device
from qcompile.target.model import Target, host_architecture
from qcompile.target.program import Kernel, Program
from targets._tvm import build, deploy, float_scan, host, library, profile
from targets._tvm.context import Context, Emitted
from targets._tvm.emulate import EmulatedExecutable
from targets._tvm.isa import Isa
from targets._tvm.kernels import conv_direct, depthwise, generic, winograd
from targets._tvm.kernels.winograd_form import Form
from targets._tvm.rpc_backend import RpcBackend
from targets._tvm.runner import ENTRY, LIBRARY, LibraryExecutable
from targets._tvm.threads import write_threads

Generator = Callable[[Context], Emitted]
Legal = Callable[[Context], bool]

GENERIC = "generic"


@cache
def generator_hash() -> str:
    """Of every file under `targets/`: another generator makes other kernels."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Variant:
    """One implementation: when it is legal, what instruction set it is written for, and its generator."""

    def __init__(self, name: str, isa: Isa, legal: Legal, emit: Generator) -> None:
        self.name, self.isa, self.legal, self.emit = name, isa, legal, emit


class CpuBackend:
    """Implements `qcompile.target.backend.Backend` over a table of variants, preferred first."""

    def __init__(self, target: Target, options: Mapping[str, str], variants: Sequence[Variant]) -> None:
        self.target = target
        self.options = {**options, **target.options}
        self.architecture = target.architecture
        self._variants = {v.name: v for v in variants}

    def fingerprint(self) -> str:
        # Kernels of one name are other code with other instructions.
        return f"{build.compiler_version()}, {' '.join(self.options.values())}, generator {generator_hash()}"

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        legal = [v.name for v in self._variants.values() if v.legal(Context(kernel, program, v.isa))]
        # The generic loops are for what nothing else can do; measuring them elsewhere would only take time.
        return tuple(name for name in legal if name != GENERIC) or (GENERIC,)

    def emit(self, kernel: Kernel, program: Program, *, threaded: bool = True) -> Emitted:
        """Generate one kernel with its chosen variant, or the preferred legal one where none is chosen.

        With `threaded=False` no loop is shared among threads.
        """
        name = kernel.variant or self.variants(kernel, program)[0]
        if name not in self._variants:
            raise InternalError(f"target {self.target.name} has no kernel variant {name!r}", node=kernel.name)
        variant = self._variants[name]
        return variant.emit(Context(kernel, program, variant.isa, threaded=threaded))

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        if self.architecture != host_architecture():
            raise DeviceError(
                f"kernels for {self.target.name} cannot be timed on this machine", hint="measure on the device itself"
            )
        emitted = [(kernel, program, self.emit(kernel, program)) for kernel, program in works]
        return profile.measure_kernels(emitted, self.options, threads)

    def build_bench(self, emitted: Sequence[Emitted], directory: Path) -> library.Bench:
        """Kernels to be timed alone."""
        return library.build_bench(emitted, self.options, directory)

    def on(self, device: Device) -> Backend:
        """The same, measuring and running on another device."""
        return RpcBackend(self, device)

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        assembled = self._assemble(program)
        library.write_library(assembled, self.options, directory)
        host.write_boundary(self.options, directory)
        write_threads(self.options, directory)
        return {
            "compiler": build.compiler_version(),
            "target": str(build.target_of(self.options)),
            "entry": ENTRY,
            "functions": str(len(assembled.functions)),
            "parameter_memory_bytes": str(assembled.params_bytes),
            "arena_memory_bytes": str(assembled.arena_bytes),
        }

    def _assemble(self, program: Program) -> library.Assembled:
        return library.assemble(program, [self.emit(k, program) for k in program.kernels])

    def deploy(self, program: Program, prefix: str) -> Deployment:
        """The program for use without Python and without threads; see `qcompile.export`."""
        return deploy.objects(self, program, prefix)

    def load(self, directory: Path, graph: Graph) -> Executable:
        """In this process, or where this machine is another one under the target's emulator."""
        if self.architecture == host_architecture():
            return LibraryExecutable(directory, graph)
        return EmulatedExecutable(directory, graph, self.options)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        """As the interface defines.

        With a program its functions are compiled again and their listings searched, and the library they link
        to must be the one in `directory`, byte for byte.  Without one the library is disassembled.
        """
        if program is None:
            return float_scan.library_float_operations(directory / LIBRARY, self.architecture)
        with TemporaryDirectory() as folder:
            codes = library.write_library(self._assemble(program), self.options, Path(folder))
            if (Path(folder) / LIBRARY).read_bytes() != (directory / LIBRARY).read_bytes():
                raise VerificationError(
                    f"{directory / LIBRARY} is not the library that this program builds to",
                    hint="it was built by another compiler version, or changed since",
                )
        return [op for c in codes for op in float_scan.assembly_float_operations(c.name, c.assembly, self.architecture)]


def generic_variant(isa: Isa) -> Variant:
    return Variant(GENERIC, isa, lambda ctx: True, generic.emit)


def winograd_variant(
    name: str, isa: Isa, form: Form, worth: Legal = lambda ctx: True, emit: Generator | None = None
) -> Variant:
    generator = emit or (lambda ctx: winograd.emit(ctx, form))
    return Variant(name, isa, lambda ctx: winograd.is_legal(ctx, form) and worth(ctx), generator)


def direct_variant(
    name: str, isa: Isa, proved: Legal = lambda ctx: True, emit: Generator = conv_direct.emit
) -> Variant:
    return Variant(name, isa, lambda ctx: conv_direct.is_legal(ctx) and proved(ctx), emit)


def depthwise_variant(isa: Isa, name: str = "depthwise", proved: Legal = lambda ctx: True) -> Variant:
    return Variant(name, isa, lambda ctx: depthwise.is_legal(ctx) and proved(ctx), depthwise.emit)
