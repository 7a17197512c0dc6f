"""Range proofs: bounds on every value of an integer graph, from the real weights, by the rules on intervals.

An accumulator must keep |Σ| below 2^31 in *any* order of summation (Σ|w|·max|x| + |b|), a requantization every
intermediate result below 2^63.  Where that cannot be shown the graph is refused with the layer's name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcompile.errors import OverflowProofError
from qcompile.ir import GRID_KEEPING, Array, Graph, Node, int_range
from qcompile.semantics import scalar
from qcompile.semantics.kits import INT32, Interval, IntervalKit

_KIT = IntervalKit()

Bounds = tuple[int, int]


def prove(graph: Graph) -> dict[str, Bounds]:
    """(smallest, largest) possible integer of every value; OverflowProofError where 32 or 64 bits may not suffice."""
    bounds: dict[str, Bounds] = {port.name: int_range(port.type.dtype) for port in graph.inputs}
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts}
        try:
            found = node_bounds(node, [bounds[v] for v in node.inputs], graph.type_of(node.inputs[0]).numel, consts)
        except OverflowProofError as error:
            raise OverflowProofError(
                error.message,
                node=node.name,
                hint="use fewer bits for this layer (--pin) or scale its weights",
            ) from None
        lo, hi = int_range(node.type.dtype)
        if not lo <= found[0] <= found[1] <= hi:
            raise OverflowProofError(
                f"values may reach [{found[0]}, {found[1]}], beyond {node.type.dtype}", node=node.name,
                hint="use fewer bits for this layer (--pin) or scale its weights",
            )  # fmt: skip
        bounds[node.name] = found
    return bounds


def node_bounds(node: Node, inputs: list[Bounds], numel: int, consts: Mapping[str, Array]) -> Bounds:
    """Bounds of one node's value; `numel` is the size of one sample of its first input."""
    match node.op:
        case "conv2d" | "linear":
            return accumulator_bounds(node, inputs[0], consts)
        case "sum_pool":
            kernel = node.attrs.ints("kernel")
            pad = node.attrs.int("pad_value")
            count = kernel[0] * kernel[1]
            return _fits((count * min(inputs[0][0], pad), count * max(inputs[0][1], pad)))
        case "reduce_sum":
            count = numel // max(1, node.type.numel)
            return _fits((count * inputs[0][0], count * inputs[0][1]))
        case "mul":
            product = scalar.multiply(_KIT, Interval.of(*inputs[0]), Interval.of(*inputs[1]), node.attrs.ints("zeros"))
            return _fits(product.bounds)
        case "requant":
            terms = [Interval.of(*b) for b in inputs]
            attrs = node.attrs
            result: Interval = scalar.requant(
                _KIT, terms, [consts[f"m{i}"] for i in range(len(terms))], consts["e"], attrs.ints("zeros"),
                attrs.int("zp"), attrs.int("lo"), attrs.int("hi"), consts.get("mneg"),
            )  # fmt: skip
            return result.bounds
        case "table":
            entries = consts["t"][inputs[0][0] : inputs[0][1] + 1]
            return int(entries.min()), int(entries.max())
        case "pad":
            value = int(node.attrs.float("value"))
            return min(inputs[0][0], value), max(inputs[0][1], value)
        case _ if node.op in GRID_KEEPING:
            return min(b[0] for b in inputs), max(b[1] for b in inputs)
    raise KeyError(node.op)


def accumulator_bounds(node: Node, x: Bounds, consts: Mapping[str, Array]) -> Bounds:
    """Bounds of Σ w·x + b over all output channels, after proving that no partial sum leaves int32."""
    w = consts["w"].reshape(len(consts["w"]), -1).astype(np.int64)
    b = consts["b"].astype(np.int64) if "b" in consts else np.zeros(len(w), np.int64)
    lo, hi = x
    if node.op == "conv2d" and any(node.attrs.ints("pad")):
        pad = node.attrs.int("pad_value")
        lo, hi = min(lo, pad), max(hi, pad)
    worst = np.abs(w).sum(axis=1) * max(abs(lo), abs(hi)) + np.abs(b)
    if worst.max() > INT32[1]:
        channel = int(worst.argmax())
        raise OverflowProofError(f"the sum of channel {channel} may reach {int(worst.max())}, beyond 32 bits")
    positive, negative = np.maximum(w, 0).sum(axis=1), np.minimum(w, 0).sum(axis=1)
    low, high = positive * lo + negative * hi + b, positive * hi + negative * lo + b
    return int(low.min()), int(high.max())


def _fits(bounds: Bounds) -> Bounds:
    if bounds[0] < INT32[0] or bounds[1] > INT32[1]:
        raise OverflowProofError(f"a sum may reach [{bounds[0]}, {bounds[1]}], beyond 32 bits")
    return bounds
