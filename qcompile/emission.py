"""From a lowered program to an artifact on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile import artifact
from qcompile.compiler import Budgets, Compiler, Planned
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches
from qcompile.pm.facts import COSTS, GROUPS, INTERACTIONS, LOSS, Bits
from qcompile.semantics.grids import quantize
from qcompile.target.program import Program
from qcompile.units import format_bits

GOLDEN_SAMPLES = 4

_VERSIONED = ("qcompile", "numpy", "torch", "onnx", "pulp", "highspy", "apache-tvm")


@dataclass(frozen=True)
class Source:
    """The captured network and what to call it.

    Attributes:
        name: file name without folders, or the kind of object it was.
        graph: float graph as captured.
    """

    name: str
    graph: Graph

    @staticmethod
    def of(model: Any, graph: Graph) -> Source:
        is_path = isinstance(model, str | os.PathLike)
        return Source(Path(model).name if is_path else type(model).__name__, graph)


def fingerprint(batches: Batches) -> tuple[int, str]:
    """(samples, SHA-256) of everything a stream of batches holds."""
    digest, count = hashlib.sha256(), 0
    for batch in batches():
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
        count += len(next(iter(batch.values())))
    return count, digest.hexdigest()


def save(
    directory: Path,
    compiler: Compiler,
    source: Source,
    planned: Planned,
    program: Program,
    record: artifact.Record,
) -> artifact.Manifest:
    """Write the artifact of a program, replacing one that lies in `directory`."""
    goldens = golden_inputs(program.graph, compiler)

    def build(folder: Path) -> Mapping[str, str]:
        compiler.run_passes(program.graph, ["emit"], program=program, data={"directory": folder})
        facts: Mapping[str, str] = compiler.reports["emit"].facts
        return facts

    return artifact.write_artifact(
        directory, graph=program.graph, record=record, plan=plan_record(compiler, planned, program),
        golden_inputs=goldens, build=build, overwrite=True,
    )  # fmt: skip


def record_of(
    compiler: Compiler,
    source: Source,
    planned: Planned,
    program: Program,
    budgets: Budgets,
    *,
    uniform: str | None,
    predicted: float | None,
    calibration: artifact.Calibration | None,
    warnings: tuple[str, ...],
) -> artifact.Record:
    """What the manifest says about the job."""
    return artifact.Record(
        versions=versions(),
        model=artifact.Model(source.name, source.graph.content_hash),
        target=compiler.target.name,
        budgets=artifact.Budgets(
            budgets.latency, budgets.memory, budgets.arena, uniform,
            {pattern: format_bits(pair) for pattern, pair in compiler.pins.items()},
        ),
        solver={
            **{key: planned.solver.get(key) for key in ("status", "objective", "bound", "gap")},
            "sensitivity": compiler.sensitivity if LOSS in compiler.graph.notes else None,
            "max_drop": budgets.max_drop,
        },
        predicted_seconds=predicted,
        arena_bytes=program.arena_bytes,
        kernels={kernel.name: kernel.variant for kernel in program.kernels},
        calibration=calibration,
        seed=compiler.seed,
        threads=compiler.threads,
        warnings=warnings,
    )  # fmt: skip


def golden_inputs(graph: Graph, compiler: Compiler) -> dict[str, Array]:
    """The first calibration samples on the input grids, and one of the extremes of the grid."""
    batch = next(iter(compiler.calibration()))
    found: dict[str, Array] = {}
    for port in graph.inputs:
        if port.grid is None:
            continue
        real = quantize(batch[port.name][: GOLDEN_SAMPLES - 1], port.grid)
        rng = compiler.context().rng(f"goldens {port.name}")
        extreme = rng.choice([0, (1 << int(port.grid.dtype[1:])) - 1], (1, *port.type.sample)).astype(real.dtype)
        found[port.name] = np.concatenate([real, extreme])
    return found


def plan_record(compiler: Compiler, planned: Planned, program: Program) -> dict[str, Any]:
    """`plan.json`: the bits, and for each layer what every choice would have cost."""
    notes = compiler.graph.notes
    losses, costs, groups = notes.get(LOSS), notes.get(COSTS), notes.get(GROUPS)
    layers: dict[str, Any] = {}
    for layer, chosen in planned.bits.items():
        choices = []
        if layer in losses and layer in costs:
            for pair, seconds in sorted(costs[layer].seconds.items()):
                choices.append(
                    {
                        "bits": list(pair), "loss": losses[layer].loss[pair], "seconds": seconds,
                        "bytes": costs[layer].bytes[pair[0]],
                    }
                )  # fmt: skip
        tied = groups[layer].grid if layer in groups else None
        layers[layer] = {"bits": list(chosen), "reads": tied, "choices": choices}
    source = next((table.source for table in costs.values()), None)
    bits: dict[str, Bits] = planned.bits
    return {
        "bits": {layer: list(pair) for layer, pair in bits.items()},
        "costs": source,
        "fixed_seconds": costs[""].seconds[8, 8] if "" in costs else None,
        "layers": layers,
        "candidates": planned.candidates,
        "prediction": _prediction(compiler, planned),
        "interactions": _interactions(compiler),
        "accuracy": planned.accuracy or None,
        "protect": list(compiler.protect),
        "memory_plan": memory_plan(program),
    }


def memory_plan(program: Program) -> dict[str, int]:
    """Bytes of the arena, and of the most that is alive at one kernel: no plan of these buffers needs less."""
    from passes.lower.plan_memory import lower_bound

    return {"arena_bytes": program.arena_bytes, "lower_bound_bytes": lower_bound(program)}


def _prediction(compiler: Compiler, planned: Planned) -> dict[str, Any] | None:
    """How losses were predicted, how far the program is from its bound, and what predictions are worth."""
    if LOSS not in compiler.graph.notes:
        return None
    groups = compiler.reports.get("mix-metrics")
    validity = compiler.reports.get("check-prediction")
    return {
        "sensitivity": compiler.sensitivity,
        "metrics": None if groups is None else groups.facts["groups"],
        "quadratic": compiler.pairs and bool(compiler.graph.notes.get(INTERACTIONS)),
        **{key: planned.solver.get(key) for key in ("status", "objective", "bound", "gap")},
        "validity": None if validity is None else dict(validity.facts),
    }


def _interactions(compiler: Compiler) -> dict[str, Any] | None:
    """The terms for pairs of choices, so that the plan can be solved again from its file."""
    from passes.plan.resolve import interactions_to_json

    found = compiler.graph.notes.get(INTERACTIONS).get("") if compiler.pairs else None
    return None if found is None else interactions_to_json(found)


def versions() -> dict[str, str]:
    """Versions of everything that has a say in the result."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
