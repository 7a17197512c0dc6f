"""Make the files one network is timed with: `python -m benchmarks.prepare NETWORK FOLDER`.

A folder holds source.onnx, fixed.onnx (batch 1), calib.npz, what the peers' quantisers made of it, our artifacts,
and prepared.json.  It runs in a process of its own, so that nothing of the preparation is alive during timing.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import contenders
from benchmarks.pack import load_pack
from benchmarks.pool import ROOT

PREPARED = "prepared.json"
SAMPLES = 16
BUDGET = 0.7
"""Latency budget of the planned artifact, relative to uniform 8 bits."""

_PEERS = {"qdq.onnx": "qdq", "qoperator.onnx": "qoperator", "nncf.xml": "nncf"}
_AMX = "x86-amx"
_SAME_NETWORK = ("_bn", "_dynamo")
"""Endings of pack files that hold another file's network, exported differently."""


@dataclass
class Preparation:
    """One network.

    Args:
        network: a name of `benchmarks.networks` or of a file in the pack.
        folder: where everything goes.
        pack: folder of the data pack.
        peer_python: interpreter of the environment that holds the peers.
        tuned: choose kernels by measuring them.
        plans: also make the artifacts with planned bit widths.
        isa: a key of `benchmarks.contenders.CAPPED`: artifacts for processors that have no more than this.
    """

    network: str
    folder: Path
    pack: Path | None
    peer_python: str
    tuned: bool = False
    plans: bool = False
    isa: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "source.onnx"

    @property
    def calib(self) -> Path:
        return self.folder / "calib.npz"

    def run(self) -> None:
        """Make what is missing; our own artifacts are always made again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_source()
        self._quantize_peers()
        macs = self._compile()
        (self.folder / PREPARED).write_text(json.dumps({"macs": macs, "notes": self.notes}))

    def write_source(self) -> None:
        from benchmarks import networks

        if self.network in networks.NETWORKS:
            if not self.source.exists():
                networks.export(self.network, self.source)
        elif self.pack is None:
            raise SystemExit(f"{self.network}: give --pack, or one of {', '.join(networks.NETWORKS)}")
        else:
            self.source.write_bytes((self.pack / "models" / f"{self.network}.onnx").read_bytes())
        model = onnx.load(self.source)
        fix_batch(model)
        onnx.save(model, self.folder / "fixed.onnx")
        if not self.calib.exists():
            np.savez(self.calib, **self._calibration(model))

    def _calibration(self, model: onnx.ModelProto) -> dict[str, Any]:
        """The pack's data, or noise for networks that have none."""
        if self.pack is not None:
            load = load_pack(self.pack)
            if self.network in load.NETWORKS:
                arrays: dict[str, Any] = load.arrays(self.network, "calib", SAMPLES)
                return {name: array for name, array in arrays.items() if name != "labels"}
        rng = np.random.default_rng(0)
        return {
            name: rng.standard_normal((SAMPLES, *shape[1:])).astype(np.float32)
            for name, shape in input_shapes(model).items()
        }

    def _quantize_peers(self) -> None:
        for file, kind in _PEERS.items():
            out = self.folder / file
            if out.exists():
                continue
            command = [self.peer_python, "-m", "benchmarks.peers", kind]
            paths = (self.folder / "fixed.onnx", self.calib, out)
            done = subprocess.run([*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
                self.notes[file] = said[-1][:120]

    def _compile(self) -> int:
        """Our artifacts; the number of multiply-adds of the network."""
        measure = self.tuned or self.plans
        if self.isa is not None:
            for precision in contenders.PRECISIONS[self.isa]:
                file, target = f"{self.isa}-{precision}.qc", f"x86-{self.isa}"
                result = self._artifact(file, target=target, uniform=precision, measure=measure)
                self.notes[file] = "" if measure else "kernels not tuned"
            graph = result.artifact.graph
            return sum(node_macs(graph, node) for node in graph.nodes)
        for stale in self.folder.glob("*.qc"):
            shutil.rmtree(stale)
        result = self._uniform_and_planned("", capped_target(), measure)
        if _has_amx():
            self._uniform_and_planned("-amx", _AMX, measure)
        graph = result.artifact.graph
        return sum(node_macs(graph, node) for node in graph.nodes)

    def _uniform_and_planned(self, ending: str, target: str, measure: bool) -> Any:
        """The artifacts of one target; the uniform one is returned."""
        from qcompile.errors import QcompileError

        uniform, budget, fastest = (f"{name}{ending}.qc" for name in ("w8a8", "budget", "fastest"))
        result = self._artifact(uniform, target=target, uniform="w8a8", measure=measure)
        if not measure:
            self.notes[uniform] = "kernels not tuned"
        if self.plans and result.measured_ms is not None:
            any_plan = self._artifact(fastest, target=target, memory=1 << 40)
            plan = self.folder / f"fastest{ending}.json"
            plan.write_text(json.dumps({"bits": fastest_bits(any_plan.artifact.plan["layers"])}))
            self._artifact(fastest, target=target, plan=plan)
            try:
                self._artifact(budget, target=target, latency=BUDGET * result.measured_ms * 1e-3)
            except QcompileError as error:
                self.notes[budget] = error.message
        return result

    def _artifact(self, file: str, **options: Any) -> Any:
        from qcompile import api

        return api.compile(self.source, calib=self.calib, out=self.folder / file, overwrite=True, **options)


def _has_amx() -> bool:
    from qcompile.pm.registry import host_target

    return host_target().name == _AMX


def capped_target() -> str:
    """This processor's target, without AMX."""
    return "x86-vnni" if _has_amx() else "cpu"


def pack_networks(pack: Path) -> list[str]:
    """The convolutional networks of a pack, each once."""
    found = []
    for path in sorted((pack / "models").glob("*.onnx")):
        if not path.stem.endswith(_SAME_NETWORK) and any(n.op_type == "Conv" for n in onnx.load(path).graph.node):
            found.append(path.stem)
    return found


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs by name, a dynamic batch as 1."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        port.name: tuple(d.dim_value or 1 for d in port.type.tensor_type.shape.dim)
        for port in model.graph.input
        if port.name not in constants
    }


def fix_batch(model: onnx.ModelProto) -> None:
    """Set a dynamic batch to 1; shapes inside are left for each engine to infer."""
    del model.graph.value_info[:]
    for port in (*model.graph.input, *model.graph.output):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1


def node_macs(graph: Any, node: Any) -> int:
    """Multiply-adds with weights of one node of an integer graph, as a direct kernel does them."""
    weights = dict(node.consts).get("w")
    return 0 if weights is None else node.type.numel * math.prod(graph.consts[weights].shape[1:])


def fastest_bits(layers: Mapping[str, Any], least: int = 4) -> dict[str, list[int]]:
    """The bits with the least predicted latency, from the table in an artifact's plan; at a tie the most bits.

    Layers that read the same stored values share their activation bits.
    """
    groups: dict[str, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer["reads"] or name, []).append(name)
    found: dict[str, list[int]] = {}
    for members in groups.values():
        costs = [{tuple(c["bits"]): c["seconds"] for c in layers[m]["choices"]} for m in members]
        offered = set.intersection(*({a for w, a in cost if min(w, a) >= least} for cost in costs))
        plans = []
        for a in sorted(offered, reverse=True):
            best = [min((seconds, -w) for (w, b), seconds in cost.items() if b == a and w >= least) for cost in costs]
            plans.append((sum(seconds for seconds, _ in best), -a, [-w for _, w in best]))
        _, a, widths = min(plans)
        found.update({m: [w, -a] for m, w in zip(members, widths, strict=True)})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare one network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--isa", choices=sorted(contenders.CAPPED))
    o = parser.parse_args(arguments)
    Preparation(o.network, o.folder, o.pack, o.peer_python, o.tuned, o.plans, o.isa).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
