"""Code generation for any C compiler: the same kernels' arithmetic, printed as scalar loops."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import DeviceError, VerificationError
from qcompile.ir import Graph
from qcompile.target.backend import Measurement
from qcompile.target.deployment import Deployment
from qcompile.target.model import Target
from qcompile.target.program import Kernel, Program
from targets._tvm import float_scan, profile
from targets._tvm.context import Emitted
from targets._tvm.cpu import CpuBackend, Variant, generic_variant
from targets._tvm.isa import SCALAR
from targets._tvm.library import Bench
from targets._tvm.runner import DESCRIPTION, ENTRY, LIBRARY, LibraryExecutable
from targets.c import kernels
from targets.c.compiler import build_shared, compiler_version
from targets.c.deploy import portable
from targets.c.source import Source, bench_text, library_text, params_bytes, translate

_FLOAT_TOKEN = re.compile(r"\b(float|double|_Float\w+|half)\b|\b\d+\.\d|\bmath\.h\b")
_DISASSEMBLED = frozenset({"x86_64", "aarch64"})
"""Architectures whose floating-point instructions are known by name; elsewhere the text alone is searched."""


class CBackend(CpuBackend):
    """Prints C99; runs it here with the machine's compiler."""

    def __init__(self, target: Target) -> None:
        variants = [
            Variant("loops", SCALAR, kernels.is_legal, kernels.dense),
            Variant("loops-depthwise", SCALAR, kernels.is_depthwise_legal, kernels.depthwise),
            generic_variant(SCALAR),
        ]
        super().__init__(target, {}, variants)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}, {compiler_version()}"

    def source(self, program: Program) -> Source:
        """The program as C text."""
        return translate(program, [self.emit(kernel, program) for kernel in program.kernels])

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        if threads != 1:
            raise DeviceError("portable C runs on one thread", hint="use --threads 1")
        emitted = [(kernel, program, self.emit(kernel, program)) for kernel, program in works]
        return profile.measure_kernels(emitted, self.options, threads, lambda e, _, folder: self.build_bench(e, folder))

    def build_bench(self, emitted: Sequence[Emitted], directory: Path) -> Bench:
        text, names = bench_text(emitted)
        build_shared(text, directory / LIBRARY)
        return Bench(directory / LIBRARY, tuple(names))

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        self._write(program, directory)
        return {"compiler": compiler_version(), "target": "portable C99", "entry": ENTRY}

    def _write(self, program: Program, directory: Path) -> str:
        """The library and how to pack its parameters; returns the text it was compiled from."""
        source = self.source(program)
        text, blob = library_text(source, ENTRY)
        directory.mkdir(parents=True, exist_ok=True)
        build_shared(text, directory / LIBRARY)
        described = {
            "entry": ENTRY,
            "arena_bytes": source.arena_bytes,
            "params_bytes": params_bytes(blob),
            "constants": [[offset, *recipe.to_json()] for offset, recipe in blob.placed],
        }
        (directory / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
        return text

    def deploy(self, program: Program, prefix: str) -> Deployment:
        return portable(self.source(program), prefix)

    def load(self, directory: Path, graph: Graph) -> LibraryExecutable:
        return LibraryExecutable(directory, graph)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        """The machine code of the library and, with a program, the text that it must be compiled from."""
        found: list[str] = []
        if program is not None:
            with TemporaryDirectory() as folder:
                text = self._write(program, Path(folder))
                if (Path(folder) / LIBRARY).read_bytes() != (directory / LIBRARY).read_bytes():
                    raise VerificationError(
                        f"{directory / LIBRARY} is not the library that this program builds to",
                        hint="it was built by another compiler version, or changed since",
                    )
            found = [f"source: {match[0]}" for match in _FLOAT_TOKEN.finditer(text)]
        if shutil.which("objdump") and platform.machine() in _DISASSEMBLED:
            found += float_scan.library_float_operations(directory / LIBRARY, platform.machine())
        return found
