"""Accuracy beside other quantisers, bits apart from rounding: `python -m benchmarks.quantizers --pack DIR`.

Everybody calibrates with the same images and answers the whole `dev` split.  `w8a8` sets uniform 8 bits beside
onnxruntime's static quantiser and NNCF.  `mixed50` gives so many percent of the 8-bit weight bytes to qcompile's
planner and to Sony's model-compression-toolkit, and then each one's bits to the other one's rounding; activations have
8 bits.  The peers run in `--peer-python`, each in a process of its own; one that is not there has a row that says so.
Rows that are in the JSON file already are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import (
    MIXED,
    SAMPLES,
    artifact_scores,
    budget,
    divergence,
    onnx_scores,
    paired_error,
    weights_of,
)  # fmt: skip
from benchmarks.pack import load_pack
from benchmarks.pool import ROOT
from benchmarks.report import table

NETWORKS = (
    "resnet20_cifar10",
    "mlperf_tiny_resnet8_cifar10",
    "resnet56_cifar10",
    "mobilenetv2_tf_imagenet",
    "squeezenet1_1_imagenet",
    "tiny_darknet_imagenet",
)
ROWS = ("w8a8", "mixed50", "mixed40")
OURS, NEAREST, UNIFORM, TOOLKIT, FEW = "qcompile", "nearest", "uniform", "mct", "mct 8/4/2"
ORT, NNCF = "onnxruntime", "nncf"
PAIRS = {
    False: ((UNIFORM, OURS), (UNIFORM, ORT), (UNIFORM, NNCF)),
    True: ((OURS, OURS), (TOOLKIT, TOOLKIT), (FEW, TOOLKIT), (TOOLKIT, OURS), (OURS, TOOLKIT), (OURS, NEAREST)),
}
"""Who chooses the bits, and who rounds; by whether the row is mixed."""
MOST_SECONDS = 7200.0
"""For one peer's process."""


class PeerError(Exception):
    """A peer that is not there, or has failed; the message is its last line."""


@dataclass(frozen=True)
class Row:
    """One network under one budget, by one choice of bits and one rounding.

    Attributes:
        row: "w8a8", or "mixed" and the percentage of the 8-bit bytes.
        bits: who chose them.
        rounding: who rounded.
        n: samples of the split.
        float_top1, top1: shares of right answers; None where there is none.
        standard_error: of their difference, paired.
        agreement: share of samples on which both answer the same.
        divergence: from the float network, in nats, mean over all samples.
        weight_bytes: of all layers.
        seconds: of choosing, rounding and compiling (peers: and answering).
        note: why there is no result.
    """

    network: str
    row: str
    bits: str
    rounding: str
    n: int = 0
    float_top1: float | None = None
    top1: float | None = None
    standard_error: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    weight_bytes: int | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.network, self.row, self.bits, self.rounding


@dataclass
class Bench:
    """One network, its data and its files.

    Args:
        load: the pack's reader.
        folder: of everything the peers read and write.
        peer_python: interpreter of their environment.
    """

    network: str
    load: Any
    folder: Path
    peer_python: str

    @property
    def model(self) -> Path:
        return Path(self.load.model(self.network))

    @cached_property
    def calib(self) -> dict[str, Any]:
        arrays = self.load.arrays(self.network, "calib", SAMPLES)
        return {name: array for name, array in arrays.items() if name != "labels"}

    @cached_property
    def dev(self) -> dict[str, Any]:
        return dict(self.load.arrays(self.network, "dev"))

    @cached_property
    def float_scores(self) -> Any:
        return onnx_scores(self.model, self.dev)

    @cached_property
    def full(self) -> int:
        """Weight bytes at 8 bits."""
        return weights_of(self.model)

    @cached_property
    def graph(self) -> Any:
        """The canonical float graph, whose layers plans name."""
        from qcompile import pipelines
        from qcompile.api import capture
        from qcompile.pm.base import PassContext
        from qcompile.pm.manager import PassManager
        from qcompile.pm.registry import find_pass
        from qcompile.target.model import Target

        passes = [find_pass(name)() for name in pipelines.CANONICALIZE]
        return PassManager(passes).run(capture(self.model), PassContext(Target("none", "", ""))).graph

    def measure(self, row: Row) -> Row:
        """The row with its figures, or with a note."""
        begun = time.perf_counter()
        try:
            given, size = self._scores(row)
        except PeerError as error:
            return replace(row, note=str(error))
        labels, wanted = self.dev["labels"], self.float_scores
        real, found = wanted.argmax(axis=1), given.argmax(axis=1)
        return replace(
            row, n=len(labels), float_top1=float((real == labels).mean()), top1=float((found == labels).mean()),
            standard_error=paired_error(real == labels, found == labels), agreement=float((found == real).mean()),
            divergence=divergence(wanted, given), weight_bytes=size, seconds=time.perf_counter() - begun,
        )  # fmt: skip

    def _scores(self, row: Row) -> tuple[Any, int]:
        if row.rounding in (ORT, NNCF):
            return self._peer_at_8_bits(row.rounding), self.full
        limit = budget(row.row, self.full) if row.row.startswith(MIXED) else None
        if row.rounding == TOOLKIT:
            return self._toolkit(row, limit)
        options: dict[str, Any] = {"uniform": row.row}
        if limit is not None:
            options = {"memory": limit, "act_bits": (8,)} if row.bits == row.rounding else {"plan": self._plan(row)}
        return self._ours(row, NEAREST if row.rounding == NEAREST else "gptq", options)

    def _ours(self, row: Row, rounding: str, options: Mapping[str, Any]) -> tuple[Any, int]:
        import qcompile

        result = qcompile.compile(
            self.model, target="cpu", calib=self.calib, measure=False, rounding=rounding, **options
        )
        if "memory" in options:
            self._keep(row, {layer: list(pair) for layer, pair in result.bits.items()})
        return artifact_scores(result.artifact, self.dev), result.weight_bytes

    def _toolkit(self, row: Row, limit: int | None) -> tuple[Any, int]:
        """Its own bits, or ours, rounded by the toolkit."""
        own = row.bits != OURS
        options = ["--bytes", str(limit)] if own else ["--plan", str(self._plan(row))]
        options += ["--widths", "own" if row.bits == FEW else "all"]
        paths = [self._described(), self._file("calib", self.calib), self._file("dev", self.dev)]
        report, found = self._peer("benchmarks.toolkit", [*map(str, paths)], options)
        weights = {node.name: int(self.graph.const(node, "w").size) for node in self.graph.nodes if self._layer(node)}
        if own:
            self._keep(row, {layer: [bits, 8] for layer, bits in report["bits"].items()})
        return found, sum(-(-weights[layer] * bits // 8) for layer, bits in report["bits"].items())

    @staticmethod
    def _layer(node: Any) -> bool:
        from qcompile.ir import WEIGHTED

        return node.op in WEIGHTED

    def _peer_at_8_bits(self, peer: str) -> Any:
        calib = self._file("calib", self.calib)
        kind, file = {ORT: ("qdq", "qdq.onnx"), NNCF: ("nncf", "nncf.xml")}[peer]
        out = self.folder / file
        if not out.exists():
            self._run(["-m", "benchmarks.peers", kind, str(self.model), str(calib), str(out)])
        if peer == ORT:
            return onnx_scores(out, self.dev)
        return self._peer("benchmarks.openvino_answers", [str(out), str(self._file("dev", self.dev))], [])[1]

    def _peer(self, module: str, paths: Sequence[str], options: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """(report, scores) of a module that writes both."""
        out = self.folder / "scores.npz"
        out.unlink(missing_ok=True)
        self._run(["-m", module, *paths, str(out), *options])
        with np.load(out) as found:
            return json.loads(str(found["report"])), found["scores"]

    def _run(self, arguments: Sequence[str]) -> None:
        """Raises PeerError."""
        try:
            done = subprocess.run(
                [self.peer_python, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=MOST_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(str(error)[:160]) from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            raise PeerError(said[-1][:160])

    def _plan(self, row: Row) -> Path:
        path = self.folder / f"{row.row}-{row.bits.replace('/', '-')}.json"
        if not path.exists():
            raise PeerError(f"no bits of {row.bits}")
        return path

    def _keep(self, row: Row, bits: Mapping[str, Sequence[int]]) -> None:
        path = self.folder / f"{row.row}-{row.bits.replace('/', '-')}.json"
        path.write_text(json.dumps({"bits": bits}))

    def _file(self, name: str, arrays: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            np.savez(path, **{key: array for key, array in arrays.items() if key != "labels"})
        return path

    def _described(self) -> Path:
        """The canonical graph, as `benchmarks.toolkit` reads it."""
        path = self.folder / "network.npz"
        if not path.exists():
            about, arrays = described(self.graph)
            np.savez(path, about=json.dumps(about), **arrays)
        return path


def described(graph: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A float graph with one input and one output as JSON values and arrays by key."""
    arrays = {f"const:{name}": np.array(array, np.float32) for name, array in graph.consts.items()}
    nodes = [
        {
            "name": node.name, "op": node.op, "inputs": list(node.inputs), "attrs": dict(node.attrs),
            "consts": {role: f"const:{name}" for role, name in node.consts},
        }
        for node in graph.nodes
    ]  # fmt: skip
    (port,), (output,) = graph.inputs, graph.outputs
    return {"port": port.name, "output": output.value, "nodes": nodes}, arrays


def main(arguments: Sequence[str] | None = None, bench: Callable[..., Any] = Bench) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantizers", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of pack files, by comma")
    parser.add_argument("--rows", default=",".join(ROWS), help="precisions, by comma")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers' environment")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantizers", help="folder of files in between")
    parser.add_argument("--json", type=Path, help="figures: kept rows are read, new ones are added as they are made")
    options = parser.parse_args(arguments)
    load = load_pack(options.pack)
    known = read(options.json)
    rows: list[Row] = []
    for network in options.networks.split(","):
        folder = options.work / network
        folder.mkdir(parents=True, exist_ok=True)
        one = bench(network, load, folder, options.peer_python)
        for name in options.rows.split(","):
            for bits, rounding in PAIRS[name.startswith(MIXED)]:
                row = Row(network, name, bits, rounding)
                if row.key not in known:
                    known[row.key] = one.measure(row)
                    print(line(known[row.key]), file=sys.stderr, flush=True)
                    write(options.json, known.values())
                rows.append(known[row.key])
    print(table([HEADER, *map(line, rows)]))
    return 0


def read(path: Path | None) -> dict[tuple[str, str, str, str], Row]:
    """Rows with figures of an earlier run; those with a note are made again."""
    if path is None or not path.exists():
        return {}
    rows = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return {row.key: row for row in rows if not row.note}


def write(path: Path | None, rows: Any) -> None:
    """All rows, also those this run was not asked for."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


HEADER = [
    "network", "row", "bits by", "rounding by", "n", "float %", "top-1 %", "± paired", "agreement %", "divergence",
    "weight bytes", "s", "note",
]  # fmt: skip


def line(row: Row) -> list[str]:
    """A row of the table."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.2f}"

    return [
        row.network, row.row, row.bits, row.rounding, str(row.n or ""), percent(row.float_top1), percent(row.top1),
        percent(row.standard_error), percent(row.agreement),
        "" if row.divergence is None else f"{row.divergence:.4f}", str(row.weight_bytes or ""),
        "" if row.seconds is None else f"{row.seconds:.0f}", row.note,
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
