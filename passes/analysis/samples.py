"""The calibration samples an analysis looks at: the first few, in small batches, each with a hash of its content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from passes.analysis.calibrate_ranges import check_inputs
from qcompile.errors import DataError
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches
from qcompile.pm.work import digest


@dataclass(frozen=True)
class LabelledBatch:
    """Input arrays by name, and the labels where they are used."""

    inputs: dict[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @cached_property
    def digest(self) -> str:
        """Hash of all arrays."""
        return digest(self.inputs, [] if self.labels is None else self.labels)


def first_samples(
    graph: Graph, stream: Batches, samples: int, size: int, labelled: bool = False
) -> Iterator[LabelledBatch]:
    """The first `samples` of a stream in batches of at most `size`; only one batch is held.

    Raises:
        DataError: there are no samples, or a batch without labels where they are used.
    """
    left = samples
    for batch in stream():
        inputs = check_inputs(graph, batch, samples - left)
        if labelled and "labels" not in batch:
            raise DataError("the calibration data has no array 'labels'")
        n = min(left, len(next(iter(inputs.values()))))
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            labels = batch["labels"][part] if labelled else None
            yield LabelledBatch({name: array[part] for name, array in inputs.items()}, labels)
        left -= n
        if not left:
            return
    if left == samples:
        raise DataError("the calibration data holds no samples")
