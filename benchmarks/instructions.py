"""Executed instructions of the Arm kernels under QEMU: `python -m benchmarks.instructions --target aarch64-dotprod`.

An emulator has no honest time, but it counts.  Each kernel is called a different number of times in two runs; the
difference is what one call executes, loops, requantization and stores included.  Beside it stands what the inner loop
of the best published kernel for the same instructions executes at least, derived from its register tile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.report import table

_PLUGIN = Path(__file__).parent / "count_instructions.c"
_CALLS = (1, 3)


@dataclass(frozen=True)
class Shape:
    """A convolution: channels in and out, size of the image, of the window, stride; groups of 1 or every channel."""

    channels: int
    out: int
    size: int
    window: int
    stride: int = 1
    depthwise: bool = False

    @property
    def name(self) -> str:
        kind = "depthwise " if self.depthwise else ""
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{kind}{self.window}x{self.window}{step}  {self.size}x{self.size}x{self.channels} -> {self.out}"

    @property
    def macs(self) -> int:
        side = -(-self.size // self.stride)
        return side * side * self.out * self.window * self.window * (1 if self.depthwise else self.channels)


SHAPES = (
    Shape(64, 64, 56, 3),
    Shape(128, 128, 28, 3),
    Shape(256, 256, 14, 3),
    Shape(512, 512, 7, 3),
    Shape(64, 256, 56, 1),
    Shape(512, 128, 28, 1),
    Shape(1024, 256, 14, 1),
    Shape(2048, 512, 7, 1),
    Shape(3, 32, 224, 3, 2),
    Shape(96, 96, 56, 3, depthwise=True),
    Shape(384, 384, 14, 3, depthwise=True),
)
"""The main convolutions of ResNet-50 and MobileNetV2."""

PUBLISHED: dict[str, tuple[str, float]] = {
    # 16 steps of k: 64 sdot, 8 ldp of weights, 4 loads of inputs, counter and branch
    "aarch64-dotprod": ("XNNPACK igemm 4x16c4, ld128", 78 / 1024),
    # 16 steps of k: 32 smmla, 8 ldp of weights, 4 loads and 4 zips of inputs, counter and branch
    "aarch64-i8mm": ("XNNPACK igemm 4x16c8, i8mm", 50 / 1024),
    # 16 steps of k: 16 smull, 16 smlal, 16 sadalp, 8 ldp of weights, 2 ldp of inputs, counter and branch
    "aarch64-neon": ("XNNPACK igemm 2x8c8, mlal", 60 / 256),
}
"""Target → kernel, and instructions per multiply-add of its inner loop alone (no requantization, no pointers)."""


@dataclass(frozen=True)
class Counted:
    """One kernel: `instructions` of a call."""

    shape: str
    bits: str
    variant: str
    macs: int
    instructions: int

    @property
    def per_mac(self) -> float:
        return self.instructions / self.macs


def graph_of(shape: Shape, w: int, a: int) -> Any:
    """Image, convolution and requant with a channels-last input and output."""
    from qcompile.ir import BATCH, INT, GraphBuilder, Grid, TensorType

    rng, b = np.random.default_rng(0), GraphBuilder("kernel", INT)
    image = TensorType((BATCH, shape.channels, shape.size, shape.size), f"u{a}")
    b.input("x", image, Grid(1.0, 0, f"u{a}"))
    x = b.add("reshape", ["x"], name="image", attrs={"shape": image.shape})
    inputs, n, pad = 1 if shape.depthwise else shape.channels, (1 << (w - 1)) - 1, shape.window // 2
    weights = rng.integers(-n, n + 1, (shape.out, inputs, shape.window, shape.window)).astype(np.int8)
    bias = rng.integers(-4096, 4096, shape.out).astype(np.int32)
    attrs = {"stride": (shape.stride,) * 2, "pad": (pad,) * 4, "groups": shape.channels if shape.depthwise else 1}
    y = b.add("conv2d", [x], name="conv", consts={"w": weights, "b": bias}, attrs=attrs)
    per = (shape.out, 1, 1)
    m = rng.integers(1 << 30, (1 << 31) - 1, per).astype(np.int32)
    rule = {"zeros": (0,), "zp": 0, "lo": 0, "hi": (1 << a) - 1, "dtype": f"u{a}"}
    y = b.add("requant", [y], name="requant", consts={"e": np.full(per, 40, np.int32), "m0": m}, attrs=rule)
    y = b.add("reshape", [y], name="y", attrs={"shape": b.type_of(y).shape})
    b.output("y", y, Grid(1.0, 0, f"u{a}"))
    return b.build()


def count(target_name: str, shape: Shape, w: int, a: int, plugin: Path, folder: Path) -> list[Counted]:
    """Every legal implementation of the convolution, in the target's order of preference."""
    from passes.lower.plan_memory import plan_program
    from qcompile.pm.registry import find_backend, find_target
    from targets._tvm.context import Value
    from targets._tvm.emulate import Emulated
    from targets._tvm.library import build_bench, value_bytes
    from targets._tvm.runner import SLACK

    target = find_target(target_name)
    backend: Any = find_backend(target)
    program = plan_program(graph_of(shape, w, a), target)
    kernel = next(k for k in program.kernels if k.anchor.op == "conv2d")
    found = []
    for variant in backend.variants(kernel, program):
        one = backend.emit(replace(kernel, variant=variant), program)
        assert one.arguments[0] == Value("image")
        bench = build_bench([one], backend.options, folder)
        # Kernels may read counts of loops from memory, so the parameters are the real ones.
        buffers = [value_bytes(kernel, program, a).tobytes() + bytes(SLACK) for a in one.arguments]
        emulated = Emulated(bench.library, backend.options, bench.symbols[0], len(buffers) - 1, str(plugin))
        executed = []
        for calls in _CALLS:
            control = np.array([calls, 1, 0, *[0] * len(buffers)], dtype=np.int32)
            # The first argument is the image, whose values do not matter: it lies in the zeroed arena.
            emulated.call(control.tobytes(), len(buffers[0]), [buffers[1:]], [])
            executed.append(int(emulated.said.rsplit(maxsplit=1)[1]))
        each = (executed[1] - executed[0]) // (_CALLS[1] - _CALLS[0])
        found.append(Counted(shape.name, f"w{w}a{a}", variant, shape.macs, each))
    return found


def build_plugin(folder: Path) -> Path:
    """The counting plug-in, compiled."""
    out = folder / "count_instructions.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(out), str(_PLUGIN)], check=True)
    return out


def format_counts(target: str, counted: Sequence[Counted]) -> str:
    rows = [("convolution", "bits", "variant", "M instructions", "instructions per multiply-add", "of published")]
    kernel, loop = PUBLISHED.get(target, ("", None))
    for c in counted:
        ratio = "-" if loop is None or "depthwise" in c.shape else f"{c.per_mac / loop:.2f}"
        rows.append((c.shape, c.bits, c.variant, f"{c.instructions / 1e6:.2f}", f"{c.per_mac:.4f}", ratio))
    note = f"\n\npublished: {kernel}, {loop:.4f} (inner loop alone, derived from its tile)" if loop else ""
    return table(rows) + note


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--target", default="aarch64-dotprod")
    parser.add_argument("--bits", default="w8a8", help="comma-separated, such as w8a8,w4a6")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the convolutions")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    from qcompile.units import parse_bits

    with TemporaryDirectory() as scratch:
        plugin = build_plugin(Path(scratch))
        counted = [
            c
            for shape in SHAPES[: options.shapes]
            for bits in options.bits.split(",")
            for c in count(options.target, shape, *parse_bits(bits), plugin, Path(scratch))
        ]
    print(format_counts(options.target, counted))
    if options.json is not None:
        options.json.write_text(json.dumps([{**asdict(c), "per_mac": c.per_mac} for c in counted], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
