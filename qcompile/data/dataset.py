"""Validated data in batches that can be streamed any number of times."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qcompile.data.check import LABELS, Header, as_float32, check_headers
from qcompile.data.images import ImageFolder, ImageSource
from qcompile.data.npz import NpzSource
from qcompile.errors import DataError
from qcompile.ir import Array, Input

log = logging.getLogger("qcompile.data")

Source = str | Path | ImageFolder | Mapping[str, Any] | Callable[[], Iterable[Any]] | Iterable[Any]
"""An `.npz` file, a folder of images, arrays by input name, or an iterable (or a callable that makes one)
of batches.

A batch is a dict by input name (with `labels` or without), or for models with one input an array or a pair of
array and labels.  Everything has the samples in dimension 0.
"""

HOLDOUT_FROM = 32
"""Samples from which on a quarter is held out; fewer are too few to spare any."""


class Rows(Protocol):
    """Where samples come from: arrays by name, of which any range of rows can be read again."""

    headers: dict[str, Header]

    def rows(self, start: int, stop: int, step: int) -> Iterator[dict[str, Array]]: ...


class ArraySource:
    """Arrays in memory."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.headers = {name: Header(a.shape, a.dtype) for name, a in self.arrays.items()}

    def rows(self, start: int, stop: int, step: int) -> Iterator[dict[str, Array]]:
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield {name: array[first:last] for name, array in self.arrays.items()}


class CallableSource:
    """A callable that makes a new iterable of batches each time; batches are cut and joined as they come."""

    def __init__(self, make: Callable[[], Iterable[Any]], inputs: Sequence[Input], limit: int | None) -> None:
        self.make, self.inputs, self.limit = make, inputs, limit
        first: dict[str, Array] | None = None
        count = 0
        for batch in self._batches():
            first = first or batch
            count += len(next(iter(batch.values())))
        if first is None:
            raise DataError("the callable gave no batches")
        self.headers = {name: Header((count, *a.shape[1:]), a.dtype) for name, a in first.items()}

    def _batches(self) -> Iterator[dict[str, Array]]:
        """Batches until the limit is reached; each fits the model."""
        seen = 0
        for number, item in enumerate(self.make()):
            batch = _as_batch(item, self.inputs, number)
            yield batch
            seen += len(next(iter(batch.values())))
            if self.limit is not None and seen >= self.limit:
                return

    def rows(self, start: int, stop: int, step: int) -> Iterator[dict[str, Array]]:
        position = 0
        for batch in self._batches():
            length = len(next(iter(batch.values())))
            low, high = max(start - position, 0), min(stop - position, length)
            for first in range(low, high, step):
                last = min(first + step, high)
                yield {name: array[first:last] for name, array in batch.items()}
            position += length
            if position >= stop:
                return
        raise DataError(f"the callable gave {position} samples, fewer than the first time")


@dataclass(frozen=True)
class Dataset:
    """Samples that fit a model.  Calling it streams them again, as `qcompile.pm.base.Batches` asks.

    Attributes:
        source: the rows.
        name: for messages and the manifest: a file name without folders, or what kind of object it was.
        inputs: the model's inputs.
        start, stop: the rows that belong to this dataset.
        batch_size: most samples of one batch.
    """

    source: Rows
    name: str
    inputs: tuple[Input, ...]
    start: int
    stop: int
    batch_size: int

    def __len__(self) -> int:
        """Samples."""
        return self.stop - self.start

    @property
    def has_labels(self) -> bool:
        return LABELS in self.source.headers

    def __call__(self) -> Iterator[dict[str, Array]]:
        """Batches: finite float32 arrays (n, …) by input name, and `labels` where there are any.

        Raises:
            DataError: NaN or infinity, or a source that cannot be read again.
        """
        position = self.start
        for batch in self.source.rows(self.start, self.stop, self.batch_size):
            yield {
                name: array if name == LABELS else as_float32(name, array, self.name, position)
                for name, array in batch.items()
            }
            position += len(next(iter(batch.values())))

    def part(self, start: int, stop: int) -> Dataset:
        """Samples start to stop of this dataset."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def arrays(self) -> dict[str, Array]:
        """Everything at once, for data that is known to be small."""
        batches = list(self())
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def load_batches(
    source: Source, graph_inputs: Sequence[Input], batch_size: int = 32, limit: int | None = None
) -> Dataset:
    """Open data and compare it with the model's inputs.

    Files and arrays are read through once, so that NaN is found now and not after minutes of work; images are
    decoded only when they are used.

    Args:
        source: see `Source`.
        graph_inputs: inputs of a graph of either level; data is float32 in the float model's own units.
        batch_size: most samples of one batch, at least 1.
        limit: most samples to use; None uses all.  The first ones, and of image folders evenly spread ones.

    Raises:
        DataError: missing or damaged file, wrong names, shapes or dtypes, NaN or infinity, no samples.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"batch size and number of samples must be at least 1, not {batch_size} and {limit}")
    inputs = tuple(graph_inputs)
    rows, name = _open(source, inputs, limit)
    count = check_headers(rows.headers, inputs, name)
    dataset = Dataset(rows, name, inputs, 0, count if limit is None else min(limit, count), batch_size)
    if not isinstance(rows, ImageSource):
        for _ in dataset():
            pass
    return dataset


def split_holdout(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """(fit, holdout): the last quarter is held out, deterministically.

    Below 32 samples both are all of them, with a warning: a plan is then chosen by the data it was fitted to.
    """
    count = len(dataset)
    if count < HOLDOUT_FROM:
        log.warning(
            "%s: only %d samples, so plans are compared on the data they were fitted to; give %d or more",
            dataset.name, count, HOLDOUT_FROM,
        )  # fmt: skip
        return dataset, dataset
    cut = count - count // 4
    return dataset.part(0, cut), dataset.part(cut, count)


def _open(source: Source, inputs: tuple[Input, ...], limit: int | None) -> tuple[Rows, str]:
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            raise DataError(
                f"{path} is a folder: state how its images become inputs",
                hint="--images-mean and --images-std, or ImageFolder(path, Preprocessing(…)) in Python",
            )
        return NpzSource(path), path.name
    if isinstance(source, ImageFolder):
        return ImageSource(source, inputs, limit), source.path.name
    if isinstance(source, Mapping):
        return ArraySource(source), "the arrays"
    if callable(source):
        return CallableSource(source, inputs, limit), "the callable"
    if isinstance(source, Iterable):
        return ArraySource(_collect(source, inputs, limit)), "the batches"
    raise DataError(f"cannot read data from {type(source).__name__}")


def _collect(batches: Iterable[Any], inputs: tuple[Input, ...], limit: int | None) -> dict[str, Array]:
    """An iterable can be walked through once only, so as much of it as is used is kept."""
    parts: list[dict[str, Array]] = []
    seen = 0
    numbers = itertools.count()
    for item in batches:
        parts.append(_as_batch(item, inputs, next(numbers)))
        seen += len(next(iter(parts[-1].values())))
        if limit is not None and seen >= limit:
            break
    if not parts:
        raise DataError("the iterable gave no batches")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _as_batch(item: Any, inputs: Sequence[Input], number: int) -> dict[str, Array]:
    """One batch by name; single arrays and (array, labels) pairs fit models with one input."""
    where = f"batch {number}"
    if isinstance(item, Mapping):
        batch = {str(name): np.asarray(value) for name, value in item.items()}
    elif len(inputs) == 1 and isinstance(item, tuple | list) and len(item) == 2:
        batch = {inputs[0].name: np.asarray(item[0]), LABELS: np.asarray(item[1])}
    elif len(inputs) == 1:
        batch = {inputs[0].name: np.asarray(item)}
    else:
        names = ", ".join(port.name for port in inputs)
        raise DataError(f"{where}: expected a dict of the arrays {names}, found {type(item).__name__}")
    check_headers({name: Header(a.shape, a.dtype) for name, a in batch.items()}, inputs, where)
    return batch
