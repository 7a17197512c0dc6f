"""How many answers a plan costs: right ones where there are labels, else ones that agree with the float network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from passes.plan.confidence import Drop
from passes.plan.simulate import Simulator
from qcompile.errors import DataError
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches
from qcompile.pm.facts import RANGES, BitChoice

LABELS = "labels"


class Judge:
    """Compares plans with the float network, sample by sample; each plan is run once.

    Args:
        graph: canonical float graph with ranges (and candidates, where there are any).
        samples: float32 arrays by input name, and `labels`.
        labels: whether to count right answers; the first output must then hold class scores.

    Attributes:
        evaluations: plans that were run.
    """

    def __init__(self, graph: Graph, samples: Batches, labels: bool) -> None:
        batches = list(samples())
        self.simulator = Simulator(graph, graph.notes[RANGES], batches)
        self.output = graph.outputs[0].name
        self.labels = np.concatenate([np.asarray(batch[LABELS]) for batch in batches]) if labels else None
        self.float_answers = answers(_stacked(self.simulator, self.output))
        if self.labels is not None and self.labels.size != self.float_answers.size:
            raise DataError(
                f"there are {self.labels.size} labels for {self.float_answers.size} answers",
                hint="labels hold one class for each sample; without them agreement with the float network is measured",
            )
        self.evaluations = 0
        self._known: dict[tuple[tuple[str, int, int], ...], Drop] = {}

    def drop(self, plan: Mapping[str, BitChoice]) -> Drop:
        """What a plan loses against the float network."""
        key = tuple(sorted((layer, bits.w, bits.a) for layer, bits in plan.items()))
        if key not in self._known:
            self.evaluations += 1
            self._known[key] = self.compare(self.simulator.outputs(plan))
        return self._known[key]

    def compare(self, outputs: Mapping[str, Array]) -> Drop:
        """What outputs on the same samples, by name, lose."""
        return compare(answers(outputs[self.output]), self.float_answers, self.labels)


def answers(scores: Array) -> NDArray[np.int64]:
    """The class with the largest score of each sample and position: int64 (n, positions).

    Classes are axis 1, and the last axis of outputs of rank 3 (one row of scores for each anchor).
    """
    return np.asarray(scores.argmax(axis=-1 if scores.ndim == 3 else 1).reshape(len(scores), -1))


def compare(found: NDArray[np.int64], real: NDArray[np.int64], labels: Array | None) -> Drop:
    """Answers (n, positions) against the float network's, paired."""
    count = len(found)
    if labels is None:
        same = float((found == real).mean(axis=1).sum())
        return Drop("agreement", count, 1.0, same / count, count - same, 0.0)
    truth = np.asarray(labels).reshape(count, -1)
    right, wanted = (found == truth).all(axis=1), (real == truth).all(axis=1)
    lost, gained = int((wanted & ~right).sum()), int((right & ~wanted).sum())
    return Drop("top-1", count, float(wanted.mean()), float(right.mean()), lost, gained)


def _stacked(simulator: Simulator, output: str) -> Array:
    return np.concatenate([run[output].numpy() for run in simulator.float_outputs])
