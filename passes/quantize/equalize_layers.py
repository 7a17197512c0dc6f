"""equalize-layers: channels scaled so that the layers that read them, and the grid they share, lose little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from passes.analysis.calibrate_ranges import data_digest, run_watched
from passes.quantize.channels import Channels, Places, Real, blocks, channels_of, scaled
from qcompile.errors import PassContractError
from qcompile.exec.tensors import Tensor
from qcompile.ir import WEIGHTED, Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Nothing, Pass, PassContext, PassResult, Report
from qcompile.pm.work import digest, recalled


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Scale channels between layers (Nagel et al. 2019, section 4.1; Lin et al. 2023, section 3.2).

    Before:  %a = conv2d(%x, w)    %r = clip(%a)    %d = conv2d(%r, v)
    After:   %a = conv2d(%x, k·w)  %r = clip(%a)    %d = conv2d(%r, v / k), k one factor for each channel

    A layer has a scale for every output channel, so k costs the layer in front nothing.  What it does behind depends on
    what reads the channel:

    *Only depthwise convolutions*, which have a scale for each channel here too: all can go to the activations, which
    share a grid.  k brings each channel's largest calibration value to that of all channels.

    *Layers that sum over channels*: the weights of one row share a scale, so a channel of small weights is lost beside
    one of large ones, as is one of small activations in theirs.  With c the root mean square of a channel's weights,
    rows first brought to one size, and r that of its activations, k = c^weights / r^activations.  Exponents 1 and 0
    make all columns alike, 0 and 1 all activations.  What weights of few bits gain, activations of few bits pay.

    What has to be scaled alike, a residual chain for example, is (`passes.quantize.channels`); there c and r are of all
    its layers and values.  A clip at 6 stays where it is.  No channel is scaled past it; above what it had on the
    calibration data it is then clipped as the edge of a grid would clip it; and a channel that reaches it keeps k = 1.

    Attributes:
        most: largest factor, and one over the smallest.
        weights: exponent of c.
        activations: exponent of r.
    """

    name: ClassVar[str] = "equalize-layers"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.WEIGHTS
    preserves = Nothing("a clip may cut values that are larger than any in the calibration data")
    needs = ("calibration",)

    most: float = 64.0
    weights: float = 0.5
    activations: float = 0.0

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises DataError where there are no samples."""
        if ctx.calibration is None:
            raise PassContractError("equalize-layers needs calibration samples")
        channels = channels_of(graph)
        read = {node.inputs[0] for node in graph.nodes if node.op in WEIGHTED}
        read = {value for value in read if channels.free[channels.sets[value]].any()}
        if not read:
            return PassResult(graph)
        sizes = _sizes(graph, ctx, read | channels.bounds.keys(), ctx.calibration)
        room = np.full(len(channels.free), np.inf)
        for value, bound in channels.bounds.items():
            np.minimum.at(room, channels.sets[value], _ratio(bound, sizes[value].largest))
        columns = column_sizes(graph, read)
        summed = _members(channels, columns)
        factors = self._filled(channels, {value: sizes[value] for value in read - columns.keys()}, room, summed)
        squares = {value: sizes[value].square for value in columns}
        self._balance(channels, columns, squares, room, factors)
        changed = {value: factors[channels.sets[value]] for value in sorted(read)}
        done = tuple(
            f"{value}: channels by {k.min():.2f} to {k.max():.2f}" for value, k in changed.items() if (k != 1).any()
        )
        return PassResult(scaled(graph, channels, factors, self.name), Report(done)) if done else PassResult(graph)

    def _filled(self, channels: Channels, sizes: Mapping[str, Sizes], room: Real, other: NDArray[np.bool_]) -> Real:
        """k of every set, (S,), that fills the values whose sizes are given; 1 elsewhere and in `other` sets."""
        found = np.full(len(room), np.inf)
        for value, size in sizes.items():
            np.minimum.at(found, channels.sets[value], _ratio(float(size.largest.max()), size.largest))
        usable = channels.free & np.isfinite(found) & ~other
        return np.where(usable, np.clip(np.minimum(found, room), 1.0, self.most), 1.0)

    def _balance(
        self, channels: Channels, columns: Mapping[str, Real], squares: Mapping[str, Real], room: Real, factors: Real
    ) -> None:
        """Set k, (S,) in `factors`, of what layers read that sum over channels: `columns`, `squares` by value, (C,)."""
        c, r = (_mean(channels, of_values) for of_values in (columns, squares))
        usable = channels.free & (c > 0) & (r > 0)
        wanted = np.ones(len(usable))
        wanted[usable] = c[usable] ** (self.weights / 2) * r[usable] ** (-self.activations / 2)
        for together in coupled(channels, columns):
            together = together[usable[together]]
            at_bound = room[together] <= 1
            moving, held = together[~at_bound], together[at_bound]
            if len(moving):
                # What is held wants 1; where nothing is, only the proportions matter.
                unit = np.exp(np.log(wanted[held if len(held) else moving]).mean())
                k = np.clip(wanted[moving] / unit, 1 / self.most, self.most)
                if not len(held):
                    k /= max(1.0, float((k / room[moving]).max()))
                factors[moving] = np.minimum(k, room[moving])


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of each channel of a value, (C,), over all samples and positions.

    Attributes:
        largest: its largest magnitude.
        square: its mean square.
    """

    largest: Real
    square: Real


def _sizes(graph: Graph, ctx: PassContext, values: Set[str], stream: Batches) -> dict[str, Sizes]:
    found = recalled(
        ctx.work,
        lambda: digest("channel sizes", graph.content_hash, sorted(values), data_digest(graph, stream)),
        lambda: {f"of {k}": np.stack([s.largest, s.square]) for k, s in channel_sizes(graph, values, stream).items()},
    )
    return {name.removeprefix("of "): Sizes(*both) for name, both in found.items()}


def channel_sizes(graph: Graph, values: Set[str], stream: Batches) -> dict[str, Sizes]:
    """Sizes of values (N, C, …), streamed; raises DataError where there are no samples."""
    largest: dict[str, Real] = {}
    total: dict[str, Real] = {}
    elements: dict[str, int] = {}

    def watch(value: str, x: Tensor) -> Tensor:
        if value in values:
            channels = x.detach().reshape(len(x), x.shape[1], -1)
            seen = channels.abs().amax(dim=(0, 2)).double().numpy()
            largest[value] = np.maximum(largest.get(value, 0.0), seen)
            total[value] = total.get(value, 0.0) + channels.double().square().sum(dim=(0, 2)).numpy()
            elements[value] = elements.get(value, 0) + channels.shape[0] * channels.shape[2]
        return x

    run_watched(graph, stream(), watch)
    return {value: Sizes(largest[value], total[value] / elements[value]) for value in largest}


def column_sizes(graph: Graph, values: Set[str]) -> dict[str, Real]:
    """Mean squares of the weights each channel of a value meets, (C,), all rows brought to one size; 1 on average.

    Values that only depthwise convolutions read are left out: their rows hold one channel.
    """
    found: dict[str, list[Real]] = {}
    for node in graph.nodes:
        if node.op not in WEIGHTED or node.inputs[0] not in values or (w := blocks(graph, node)).shape[2] == 1:
            continue
        rows = np.square(w).mean(axis=(2, 3), keepdims=True)
        shares = np.divide(np.square(w), rows, out=np.zeros_like(w), where=rows > 0).mean(axis=(1, 3)).reshape(-1)
        found.setdefault(node.inputs[0], []).append(shares)
    return {value: np.mean(shares, axis=0) for value, shares in found.items()}


def coupled(channels: Channels, values: Iterable[str]) -> list[Places]:
    """Groups of sets, in order: those that meet in a value, directly or over others."""
    view: nx.Graph[int] = nx.Graph()
    for value in values:
        nx.add_path(view, channels.sets[value].tolist())
    return [np.sort(np.fromiter(group, np.int64)) for group in nx.connected_components(view)]


def _mean(channels: Channels, sizes: Mapping[str, Real]) -> Real:
    """The mean over a set's channels, (S,); 0 for sets that are in none of the values."""
    total, seen = np.zeros((2, len(channels.free)))
    for value, size in sizes.items():
        np.add.at(total, channels.sets[value], size)
        np.add.at(seen, channels.sets[value], 1)
    return np.divide(total, seen, out=total, where=seen > 0)


def _members(channels: Channels, values: Iterable[str]) -> NDArray[np.bool_]:
    """(S,), whether a set has a channel in one of the values."""
    inside = np.zeros(len(channels.free), bool)
    for value in values:
        inside[channels.sets[value]] = True
    return inside


def _ratio(whole: float, largest: Real) -> Real:
    """The factor that brings each channel to `whole`; infinite for those that are always 0."""
    return np.divide(whole, largest, out=np.full_like(largest, np.inf), where=largest > 0)
