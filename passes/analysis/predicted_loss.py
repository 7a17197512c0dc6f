"""The loss the notes predict for a plan: the sum over layers, and the terms between them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from passes.analysis.subjects import chosen_by
from passes.structure import Structure
from qcompile.ir import Graph
from qcompile.pm.facts import INTERACTIONS, LOSS, BitChoice


class PredictedLoss:
    """Predicts the losses of plans.

    Args:
        graph: holds the note of losses, and that of interactions where an estimator found any.
    """

    def __init__(self, graph: Graph) -> None:
        self.structure = Structure(graph)
        self.losses = graph.notes[LOSS]
        self.between = graph.notes.get(INTERACTIONS).get("")
        rows = [] if self.between is None else zip(self.between.subjects, self.between.bits, strict=True)
        self.row = {row: i for i, row in enumerate(rows)}

    def additive(self, plan: Mapping[str, BitChoice]) -> float:
        """The sum of the layers' losses."""
        return math.fsum(self.losses[layer].loss[choice.w, choice.a] for layer, choice in plan.items())

    def augmented(self, plan: Mapping[str, BitChoice]) -> float | None:
        """With the terms of all pairs of choices; None where none are known."""
        if self.between is None:
            return None
        picked = [(choice.subject, choice.bits) for choice in chosen_by(self.structure, plan)]
        rows = [self.row[key] for key in picked if key in self.row]
        part = self.between.matrix[np.ix_(rows, rows)]
        return self.additive(plan) + math.fsum(part[np.triu_indices(len(rows), 1)].tolist())
