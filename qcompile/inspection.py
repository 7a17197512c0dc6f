"""What a model, an artifact or this installation holds, without compiling anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.artifact import Artifact
from qcompile.errors import UnsupportedOpError, UsageError
from qcompile.ir import WEIGHTED, Graph
from qcompile.semantics.grids import packed_bytes


def inspect_model(model: Any, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """Nodes, layers, shapes, multiply-adds and sizes of a model; or everything in it that is not supported.

    Returns:
        supported: bool; problem: the complete message where it is not; inputs, outputs: name → shape;
        operators: operator → count; layers: one dict each; macs: per sample; parameters; weight_bytes_8bit.
    """
    from qcompile.capture import capture

    try:
        graph = capture(model, shapes=shapes)
    except UnsupportedOpError as error:
        return {"supported": False, "problem": error.message, "hint": error.hint}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    layers = [layer_facts(graph, node.name) for node in graph.nodes if node.op in WEIGHTED]
    return {
        "supported": True,
        "inputs": {port.name: ["N", *port.type.sample] for port in graph.inputs},
        "outputs": {out.name: ["N", *graph.type_of(out.value).sample] for out in graph.outputs},
        "operators": dict(sorted(counts.items())),
        "layers": layers,
        "macs": sum(layer["macs"] for layer in layers),
        "parameters": sum(array.size for array in graph.consts.values()),
        "weight_bytes_8bit": sum(layer["weight_bytes_8bit"] for layer in layers),
    }


def layer_facts(graph: Graph, name: str) -> dict[str, Any]:
    """Name, operator, shapes, multiply-adds of one sample and bytes of one layer."""
    node = graph.by_name[name]
    w = graph.const(node, "w")
    return {
        "name": name,
        "op": node.op,
        "weights": list(w.shape),
        "output": ["N", *node.type.sample],
        "macs": node.type.numel * math.prod(w.shape[1:]),
        "weight_bytes_8bit": packed_bytes(w.size, 8),
    }


def explain_artifact(artifact: Artifact, layer: str | None = None) -> dict[str, Any]:
    """Why each layer, or one, got its bits: its choices with loss, seconds and bytes, and what it is tied to.

    With a layer also `marginal`: the program solved again with a little more of each budget, what that would save and
    which layers it would change.
    """
    plan = artifact.plan
    layers: dict[str, Any] = plan["layers"]
    if layer is not None and layer not in layers:
        raise UsageError(f"no layer {layer!r}", hint=f"the layers are {', '.join(layers)}")
    chosen = layers if layer is None else {layer: layers[layer]}
    found = {}
    for name, facts in chosen.items():
        tied = [other for other, o in layers.items() if other != name and o["reads"] and o["reads"] == facts["reads"]]
        now = next((c for c in facts["choices"] if c["bits"] == facts["bits"]), None)
        found[name] = {
            "bits": facts["bits"],
            "tied_to": tied,
            "now": now,
            "choices": facts["choices"] if layer is not None else [],
            "upgrades": _upgrades(facts["choices"], now) if now else [],
        }
    record = artifact.manifest.record
    prediction = plan.get("prediction") or {}
    return {
        "target": record.target,
        "costs": plan.get("costs"),
        "memory_plan": plan.get("memory_plan"),
        "budgets": {
            "latency_seconds": record.budgets.latency_seconds,
            "memory_bytes": record.budgets.memory_bytes,
            "arena_bytes": record.budgets.arena_bytes,
        },
        "solver": dict(record.solver),
        "sensitivity": prediction.get("sensitivity"),
        "validity": prediction.get("validity"),
        "accuracy": plan.get("accuracy"),
        "candidates": plan.get("candidates", []),
        "layers": found,
        "marginal": [] if layer is None else _marginal(artifact),
    }


def _marginal(artifact: Artifact) -> list[dict[str, Any]]:
    """What more of each budget would change; empty for plans that no program chose."""
    from passes.plan.resolve import Resolver, shadow_prices

    budgets = artifact.manifest.record.budgets
    resolver = Resolver.of(artifact.plan, (*budgets.pins, *artifact.plan.get("protect", ())))
    if resolver is None:
        return []
    limits = (("memory", budgets.memory_bytes), ("latency", budgets.latency_seconds))
    return shadow_prices(resolver, [axis for axis, limit in limits if limit is not None])


def _upgrades(choices: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The best loss each further byte or second could buy: choices with less loss, most gain per byte first."""
    better = []
    for choice in choices:
        gain = now["loss"] - choice["loss"]
        if gain > 0:
            better.append(
                {
                    "bits": choice["bits"],
                    "loss_saved": gain,
                    "extra_bytes": choice["bytes"] - now["bytes"],
                    "extra_ms": (choice["seconds"] - now["seconds"]) * 1e3,
                }
            )
    return sorted(better, key=lambda c: -c["loss_saved"] / max(1, c["extra_bytes"]))[:3]


def list_targets() -> list[dict[str, Any]]:
    """Name, summary, bits, and what this machine can do for it: see `qcompile.diagnosis.target_facts`."""
    from qcompile.diagnosis import target_facts
    from qcompile.pm.registry import find_target, host_target, target_names

    best = host_target().name
    rows = []
    for name in target_names():
        target = find_target(name)
        rows.append(
            {
                "name": name, "summary": target.summary, "weight_bits": list(target.weight_bits),
                "act_bits": list(target.act_bits), **target_facts(target), "cpu": name == best,
            }
        )  # fmt: skip
    return rows


def list_ops() -> list[dict[str, Any]]:
    """The operators capture understands, by source."""
    from qcompile.capture import onnx, torch_walk

    return [
        {"source": "onnx", "operators": list(onnx.supported_ops())},
        {"source": "torch", "operators": list(torch_walk.supported_ops())},
    ]
