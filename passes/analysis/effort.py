"""How many samples a large network may be run on."""

from __future__ import annotations

import math

from qcompile.ir import WEIGHTED, Graph

LEAST_SAMPLES = 8
"""That an analysis looks at, however large the network."""


def affordable_samples(graph: Graph, runs: float, teramacs: float) -> int:
    """Samples for which `runs` runs of the whole network take at most `teramacs` · 10¹² multiply-accumulates.

    At least `LEAST_SAMPLES`.
    """
    return max(LEAST_SAMPLES, int(teramacs * 1e12 // max(round(runs * macs(graph)), 1)))


def macs(graph: Graph) -> int:
    """Multiply-accumulates of all layers for one sample."""
    layers = [node for node in graph.nodes if node.op in WEIGHTED]
    return sum(node.type.numel * math.prod(graph.const(node, "w").shape[1:]) for node in layers)
