"""calibrate-ranges: clipping ranges of activations, from calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.clip_search import ClipError, least_squares_clip
from passes.analysis.histogram import Histogram
from passes.structure import Structure
from qcompile.errors import DataError, PassContractError, UsageError
from qcompile.exec.tensors import Tensor
from qcompile.exec.torch_exec import TorchGraph, parts_of
from qcompile.ir import MOVEMENT, Array, Graph
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import RANGES, Range
from qcompile.pm.work import digest, recalled

METHODS = ("mse", "minmax", "percentile")

_OF = "of "
"""Before the names of grid groups among what is kept: a model may call a value anything."""


@dataclass(frozen=True)
class CalibrateRanges(Pass):
    """Run the calibration samples and choose a clipping range per grid group and bit width.

    The samples are streamed: each group keeps one histogram of fixed size, whatever their number.

    Attributes:
        method: how ranges are chosen.
            "mse": the range with the smallest expected squared error of rounding and clipping (as in OMSE,
            Choukroun et al. 2019), from the histogram, for values that layers read.  Others keep
            everything seen: they feed additions and averages, where rounding errors cancel and clipping
            errors add up.
            "minmax": everything seen; "percentile": all but the outermost elements.
        percentile: the share of elements, in percent, that "percentile" keeps inside.
    """

    name: ClassVar[str] = "calibrate-ranges"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (RANGES,)
    needs = ("calibration",)

    method: str = "mse"
    percentile: float = 99.99

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if self.method not in METHODS:
            raise UsageError(f"unknown calibration method {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"percentile must lie between 50 and 100, not {self.percentile}")
        if ctx.calibration is None:
            raise PassContractError("calibrate-ranges needs calibration samples")
        calibration = ctx.calibration
        widths = sorted({*ctx.target.act_bits, 8})
        found = recalled(
            ctx.work,
            lambda: digest(self.spec(), graph.content_hash, widths, data_digest(graph, calibration)),
            lambda: self._found(graph, calibration, widths),
        )
        samples = int(found.pop("samples"))
        table = {name.removeprefix(_OF): _unpacked(row, widths, samples) for name, row in found.items()}
        facts = {"samples": samples, "groups": len(table), "method": self.method}
        return PassResult(graph.with_notes(graph.notes.with_table(RANGES, table)), Report(facts=facts))

    def _found(self, graph: Graph, calibration: Batches, widths: list[int]) -> dict[str, Array]:
        """A packed range for each grid group, and `samples`, how many were seen."""
        structure = Structure(graph)
        histograms, samples = observe(graph, structure, calibration())
        read = structure.tied()
        ranges = {g: self._range(hist, widths, samples, g in read) for g, hist in histograms.items()}
        return {_OF + group: _packed(found) for group, found in ranges.items()} | {"samples": np.array(samples)}

    def _range(self, hist: Histogram, widths: list[int], samples: int, layered: bool) -> Range:
        error = ClipError(hist)
        clip = {bits: self._clip(hist, error, bits, layered) for bits in widths}
        return Range(hist.lo, hist.hi, clip, {bits: error(*clip[bits], bits) for bits in widths}, samples)

    def _clip(self, hist: Histogram, error: ClipError, bits: int, layered: bool) -> tuple[float, float]:
        lo, hi = min(hist.lo, 0.0), max(hist.hi, 0.0)
        if self.method == "percentile":
            outside = 100 - self.percentile
            return min(hist.percentile(outside), 0.0), max(hist.percentile(self.percentile), 0.0)
        if self.method == "minmax" or not layered:
            return lo, hi
        return least_squares_clip(error, lo, hi, bits)


def _packed(found: Range) -> Array:
    """lo, hi, and of each width, ascending, the clipping range and its error; float64."""
    rows = [(*found.clip[bits], found.error[bits]) for bits in sorted(found.clip)]
    return np.array([found.lo, found.hi, *(number for row in rows for number in row)])


def _unpacked(numbers: Array, widths: list[int], samples: int) -> Range:
    lo, hi, *others = numbers.tolist()
    rows = {bits: others[3 * i : 3 * i + 3] for i, bits in enumerate(widths)}
    clip = {bits: (row[0], row[1]) for bits, row in rows.items()}
    return Range(lo, hi, clip, {bits: row[2] for bits, row in rows.items()}, samples)


def data_digest(graph: Graph, stream: Batches) -> str:
    """Hash of the graph's inputs in all batches of a stream; raises as `check_inputs` does."""
    seen, hashes = 0, []
    for batch in stream():
        inputs = check_inputs(graph, batch, seen)
        seen += len(next(iter(inputs.values())))
        hashes.append(digest(inputs))
    return digest(hashes)


def observe(
    graph: Graph, structure: Structure, batches: Iterator[dict[str, Array]]
) -> tuple[dict[str, Histogram], int]:
    """Histograms by grid group over all samples, and the number of samples.

    Raises:
        DataError: no samples, a missing or misshapen input, or a value that is not finite.
    """
    histograms = {group: Histogram() for group in structure.members}
    observed = {value: structure.group_of[value] for value in _informative(graph, structure)}

    def watch(value: str, x: Tensor) -> Tensor:
        group = observed.get(value)
        if group is not None and not histograms[group].add(x):
            raise DataError(
                f"{value!r} becomes infinite or NaN on the calibration data",
                hint="check the inputs' preprocessing",
            )
        return x

    return histograms, run_watched(graph, batches, watch)


def run_watched(graph: Graph, batches: Iterator[dict[str, Array]], watch: Callable[[str, Tensor], Tensor]) -> int:
    """Run all samples through the float network, a batch at a time; the number of samples.

    Args:
        watch: is shown every value by name, and gives what is read in its place.

    Raises:
        DataError: no samples, or a missing or misshapen input.
    """
    runner, samples = TorchGraph(graph), 0
    for batch in batches:
        inputs = check_inputs(graph, batch, samples)
        samples += len(next(iter(inputs.values())))
        for part in parts_of(graph, inputs):
            runner.run(part, quantize=watch)
    if not samples:
        raise DataError("the calibration data holds no samples")
    return samples


def check_inputs(graph: Graph, batch: Mapping[str, Array], seen: int = 0) -> dict[str, Array]:
    """The graph's inputs of a batch, without labels; `seen` samples came before it (for messages).

    Raises:
        DataError: an input is missing, has the wrong shape, or holds NaN or infinity.
    """
    inputs = {}
    for port in graph.inputs:
        if port.name not in batch:
            raise DataError(f"the data has no array {port.name!r}", hint=f"it holds {', '.join(batch)}")
        array = batch[port.name]
        if array.shape[1:] != port.type.sample:
            raise DataError(f"input {port.name!r} has shape {array.shape[1:]} per sample, not {port.type.sample}")
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0]) + seen
            raise DataError(f"input {port.name!r} holds NaN or infinity in sample {bad}")
        inputs[port.name] = array
    return inputs


def _informative(graph: Graph, structure: Structure) -> list[str]:
    """The stored values whose elements are not just those of another value of their group, moved."""
    found = [port.name for port in graph.inputs]
    for value, region in structure.regions.items():
        inside = all(structure.group_of[v] == structure.group_of[value] for v in region.anchor.inputs)
        if not (inside and region.anchor.op in MOVEMENT - {"pad"}):
            found.append(value)
    return found
