"""Where an artifact's time goes, kernel by kernel: `python -m benchmarks.kernels ARTIFACT`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peak import measure_gops
from benchmarks.report import table


@dataclass(frozen=True)
class Timed:
    """One kernel of a program, timed alone with warm caches.

    Attributes:
        name: the value it produces.
        kind: operator and size.
        shapes: what it reads and writes.
        variant: its implementation.
        seconds: median.
        macs: multiply-adds with weights, as a direct kernel does them.
    """

    name: str
    kind: str
    shapes: str
    variant: str
    seconds: float
    macs: int

    @property
    def gops(self) -> float:
        """Giga-operations a second, two for a multiply-add."""
        return 2e-9 * self.macs / self.seconds


def kind_of(program: Any, kernel: Any) -> str:
    """Operator and size, such as `3x3/2 depthwise conv2d`."""
    anchor = kernel.anchor
    if anchor.op != "conv2d":
        return str(anchor.op)
    size = "x".join(map(str, program.graph.consts[dict(anchor.consts)["w"]].shape[2:]))
    stride, groups = max(anchor.attrs.get("stride", (1, 1))), anchor.attrs.get("groups", 1)
    grouped = "" if groups == 1 else "depthwise " if groups == anchor.type.sample[0] else "grouped "
    return f"{size}{f'/{stride}' if stride > 1 else ''} {grouped}conv2d"


def shapes_of(program: Any, kernel: Any) -> str:
    """What is read first and what is written, such as `64x56x56 -> 128x28x28`, and how much else is read."""
    read, written = (program.buffers[v].layout.shape for v in (kernel.inputs[0], kernel.name))
    more = len(kernel.inputs) - 1
    return f"{'x'.join(map(str, read))} -> {'x'.join(map(str, written))}" + (f", {more} more read" if more else "")


def time_kernels(artifact: Any, threads: int) -> list[Timed]:
    """All kernels of an artifact, slowest first."""
    from benchmarks.prepare import node_macs
    from qcompile.verification import lower_again

    program = lower_again(artifact)
    measured = artifact.backend.measure([(kernel, program) for kernel in program.kernels], threads)
    found = []
    for k, m in zip(program.kernels, measured, strict=True):
        macs = node_macs(program.graph, k.anchor)
        found.append(Timed(k.name, kind_of(program, k), shapes_of(program, k), k.variant, m.median, macs))
    return sorted(found, key=lambda timed: -timed.seconds)


def time_variants(artifact: Any, threads: int, slowest: Sequence[Timed]) -> str:
    """A table of what each of some kernels takes in every implementation that may be chosen for it, microseconds."""
    from qcompile.verification import lower_again

    program, backend = lower_again(artifact), artifact.backend
    kernels = {kernel.name: kernel for kernel in program.kernels}
    works = [(t.name, v) for t in slowest for v in backend.variants(kernels[t.name], program)]
    measured = backend.measure([(replace(kernels[name], variant=v), program) for name, v in works], threads)
    taken = {work: m.median for work, m in zip(works, measured, strict=True)}
    names = list(dict.fromkeys(variant for _, variant in works))
    rows = [
        (t.name, t.kind, t.shapes, *(f"{taken[t.name, v] * 1e6:.1f}" if (t.name, v) in taken else "-" for v in names))
        for t in slowest
    ]
    return table([("kernel", "kind", "shapes", *names), *rows])


def format_kernels(kernels: Sequence[Timed], top: int, peak: float | None, whole: float) -> str:
    """The slowest kernels, the totals by variant, and the sum beside the time end to end."""
    total = sum(k.seconds for k in kernels)

    def cells(labels: Sequence[str], part: Sequence[Timed], note: str) -> tuple[str, ...]:
        seconds, macs = sum(k.seconds for k in part), sum(k.macs for k in part)
        gops = 2e-9 * macs / seconds if macs and seconds else None
        return (
            *labels, f"{seconds * 1e6:.1f}", f"{100 * seconds / total:.1f} %", "-" if gops is None else f"{gops:.0f}",
            "-" if gops is None or not peak else f"{100 * gops / peak:.0f} %", note,
        )  # fmt: skip

    figures = ("us", "share", "GOPS", "of peak")
    single = [cells((k.name, k.kind, k.variant), [k], k.shapes) for k in kernels[:top]]
    groups: dict[tuple[str, str], list[Timed]] = {}
    for k in kernels:
        groups.setdefault((k.kind, k.variant), []).append(k)
    ordered = sorted(groups.items(), key=lambda item: -sum(k.seconds for k in item[1]))
    summed = [cells(labels, part, str(len(part))) for labels, part in ordered]
    slowest = table([("kernel", "kind", "variant", *figures, "shapes"), *single])
    summary = table([("kind", "variant", *figures, "kernels"), *summed])
    wall = f", peak {peak:.0f} GOPS a core" if peak else ""
    sums = f"sum of kernels {total * 1e3:.3f} ms, end to end {whole * 1e3:.3f} ms{wall}"
    return f"{slowest}\n\n{summary}\n\n{sums}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Time an artifact's kernels and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=20, help="how many kernels to list")
    parser.add_argument("--variants", action="store_true", help="time those in every implementation they may have")
    parser.add_argument("--json", type=Path, help="file for all kernels")
    options = parser.parse_args(arguments)
    from qcompile.artifact import load

    artifact = load(options.artifact)
    kernels = time_kernels(artifact, options.threads)
    peak = measure_gops()
    whole = artifact.executable.measure(options.threads, 0).median
    print(format_kernels(kernels, options.top, None if peak is None else peak * options.threads, whole))
    if options.variants:
        print(f"\n{time_variants(artifact, options.threads, kernels[: options.top])}")
    if options.json is not None:
        listed = [{**asdict(k), "gops": k.gops} for k in kernels]
        options.json.write_text(json.dumps({"end_to_end": whole, "peak_gops": peak, "kernels": listed}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
