"""Where an artifact's time goes, kernel by kernel: `python -m benchmarks.kernels ARTIFACT`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peak import measure_gops
from benchmarks.report import table


@dataclass(frozen=True)
class Timed:
    """One kernel of a program, timed alone with warm caches.

    Attributes:
        name: the value it produces.
        what: operator, shapes and the like, for people.
        variant: its implementation.
        seconds: median.
        macs: multiply-adds with weights, as a direct kernel does them.
    """

    name: str
    what: str
    variant: str
    seconds: float
    macs: int

    @property
    def gops(self) -> float:
        """Giga-operations a second, two for a multiply-add."""
        return 2e-9 * self.macs / self.seconds


def describe(program: Any, kernel: Any) -> str:
    """Such as `conv2d 3x3/2 56x56x64 -> 28x28x128 g1 +add`."""
    anchor = kernel.anchor
    shape = "x".join(map(str, program.buffers[kernel.name].layout.shape))
    read = "x".join(map(str, program.buffers[kernel.inputs[0]].layout.shape))
    text = f"{anchor.op} {read} -> {shape}"
    roles = dict(anchor.consts)
    if anchor.op == "conv2d":
        size = "x".join(map(str, program.graph.consts[roles["w"]].shape[2:]))
        stride = anchor.attrs.get("stride", (1, 1))
        text = f"{size}/{max(stride)} {text}"
        groups = anchor.attrs.get("groups", 1)
        text += f" groups {groups}" if groups > 1 else ""
    added = len(kernel.inputs) - 1
    return text + (f" +{added} read" if added else "")


def time_kernels(artifact: Any, threads: int) -> list[Timed]:
    """All kernels of an artifact, slowest first."""
    from benchmarks.prepare import node_macs
    from qcompile.verification import lower_again

    program = lower_again(artifact)
    measured = artifact.backend.measure([(kernel, program) for kernel in program.kernels], threads)
    found = [
        Timed(k.name, describe(program, k), k.variant, m.median, node_macs(program.graph, k.anchor))
        for k, m in zip(program.kernels, measured, strict=True)
    ]
    return sorted(found, key=lambda timed: -timed.seconds)


def format_kernels(kernels: Sequence[Timed], top: int, peak: float | None, whole: float) -> str:
    """The slowest kernels, the totals by variant, and the sum beside the time end to end."""
    total = sum(k.seconds for k in kernels)

    def cells(name: str, what: str, variant: str, part: Sequence[Timed]) -> tuple[str, ...]:
        seconds, macs = sum(k.seconds for k in part), sum(k.macs for k in part)
        gops = 2e-9 * macs / seconds if macs and seconds else None
        return (
            name, variant, f"{seconds * 1e6:.1f}", f"{100 * seconds / total:.1f} %",
            "-" if gops is None else f"{gops:.0f}", "-" if gops is None or not peak else f"{100 * gops / peak:.0f} %",
            what,
        )  # fmt: skip

    head = ("kernel", "variant", "us", "share", "GOPS", "of peak", "what")
    slowest = table([head, *(cells(k.name, k.what, k.variant, [k]) for k in kernels[:top])])
    kinds: dict[str, list[Timed]] = {}
    for k in kernels:
        depthwise = " depthwise" if " groups " in k.what else ""
        op = next((o for o in ("conv2d", "linear") if o in k.what), "other")
        size = k.what.split("/")[0] + " " if op == "conv2d" else ""
        kinds.setdefault(f"{size}{op}{depthwise}, {k.variant}", []).append(k)
    ordered = sorted(kinds.items(), key=lambda item: -sum(k.seconds for k in item[1]))
    summary = table([head, *(cells(kind, f"{len(part)} kernels", part[0].variant, part) for kind, part in ordered)])
    wall = f", peak {peak:.0f} GOPS a core" if peak else ""
    sums = f"sum of kernels {total * 1e3:.3f} ms, end to end {whole * 1e3:.3f} ms{wall}"
    return f"{slowest}\n\n{summary}\n\n{sums}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Time an artifact's kernels and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=20, help="how many kernels to list")
    parser.add_argument("--json", type=Path, help="file for all kernels")
    options = parser.parse_args(arguments)
    from qcompile.artifact import load

    artifact = load(options.artifact)
    kernels = time_kernels(artifact, options.threads)
    peak = measure_gops()
    whole = artifact.executable.measure(options.threads, 0).median
    print(format_kernels(kernels, options.top, None if peak is None else peak * options.threads, whole))
    if options.json is not None:
        listed = [{**asdict(k), "gops": k.gops} for k in kernels]
        options.json.write_text(json.dumps({"end_to_end": whole, "peak_gops": peak, "kernels": listed}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
