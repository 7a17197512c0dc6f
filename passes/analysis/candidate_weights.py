"""The rounded weights the analyses and the simulation run: the candidates where there are any, else nearest ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcompile.exec.tensors import Tensor, to_tensor
from qcompile.ir import Array, Graph
from qcompile.pm.facts import CANDIDATES, Rounded
from qcompile.semantics.grids import quantize_weights, weight_scales


class CandidateWeights:
    """Float constants of a layer rounded to some bits, by role; each is made once.

    Args:
        graph: canonical float graph; its note of candidates is looked at where it holds one.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[str, int], dict[str, Tensor]] = {}

    def __call__(self, layer: str, bits: int) -> Mapping[str, Tensor]:
        """`w`, and `b` where the bias differs from the layer's own."""
        key = layer, bits
        if key not in self.made:
            candidate = self.candidate(layer, bits)
            if candidate is None:
                self.made[key] = {"w": to_tensor(nearest(self.graph.const(self.graph.by_name[layer], "w"), bits))}
            else:
                self.made[key] = {"w": to_tensor(candidate.real()), "b": to_tensor(candidate.b)}
        return self.made[key]

    def candidate(self, layer: str, bits: int) -> Rounded | None:
        """The noted candidate, or None."""
        noted = self.graph.notes.get(CANDIDATES).get(layer)
        return None if noted is None else noted.by_bits.get(bits)

    def error(self, layer: str, bits: int) -> float:
        """‖Q(W) − W‖², float64."""
        w = self.graph.const(self.graph.by_name[layer], "w")
        candidate = self.candidate(layer, bits)
        rounded = nearest(w, bits) if candidate is None else candidate.real()
        return float(np.square(rounded - w.astype(np.float64)).sum())


def nearest(w: Array, bits: int) -> Array:
    """Weights rounded to nearest with the scales `integerize` uses, float64."""
    scales = weight_scales(w, bits)
    rounded = quantize_weights(w, bits, scales).astype(np.float64)
    return np.asarray(rounded * scales.reshape(-1, *[1] * (w.ndim - 1)))
