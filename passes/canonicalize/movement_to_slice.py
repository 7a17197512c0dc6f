"""movement-to-slice: reshapes and transposes that come to taking every n-th channel become a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.canonicalize.rewrite import until_stable
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.ir.ops import AttrValue
from qcompile.pm.base import ON_FLOAT, Exact, Levels, Pass, PassContext, PassResult, Report

_MOVING = frozenset({"reshape", "transpose", "slice"})
_LARGEST = 1 << 24
"""Elements of the largest value whose places are followed."""


@dataclass(frozen=True)
class MovementToSlice(Pass):
    """Replace a chain of reshapes, transposes and slices by the one slice that gives the same elements.

    Before:  %a = reshape(%x) {(N,24,2,HW)}; %t = transpose(%a);      After:  %y = slice(%x) {starts=(1,0,0),
             %s = slice(%t); %y = reshape(%s) {(N,24,H,W)}                         steps=(2,1,1)}
    A channel shuffle whose halves are read apart (ShuffleNet V2, Ma et al. 2018) is such a chain for each half.  Where
    every element goes is followed exactly: the chain is run on the elements' own places.
    """

    name: ClassVar[str] = "movement-to-slice"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE
    preserves = Exact()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []

        def step(graph: Graph) -> Graph | None:
            for node in graph.nodes:
                if found := _as_slice(graph, node):
                    done.append(node.name)
                    return _replace(graph, node, *found)
            return None

        return PassResult(until_stable(graph, step), Report(done=tuple(done)))


def _replace(graph: Graph, node: Node, source: str, attrs: Mapping[str, AttrValue]) -> Graph:
    def visit(b: GraphBuilder, n: Node, rename: Mapping[str, str]) -> str | None:
        if n is not node:
            return None
        return b.add("slice", [rename[source]], name=node.name, attrs=attrs, origin=(*node.origin, "movement-to-slice"))

    return rebuild(graph, visit)


def _as_slice(graph: Graph, node: Node) -> tuple[str, dict[str, AttrValue]] | None:
    """The farthest value that a node shows a slice of, behind more than slices, and that slice."""
    chain: list[Node] = []
    here: Node | None = node
    while here is not None and here.op in _MOVING:
        chain.append(here)
        here = graph.by_name.get(here.inputs[0])
    while len(chain) > 1 and any(moved.op != "slice" for moved in chain):
        source = chain[-1].inputs[0]
        type_ = graph.type_of(source)
        if type_.rank == node.type.rank and type_.numel <= _LARGEST:
            places = np.arange(type_.numel).reshape(type_.sample)
            for moved in reversed(chain):
                places = _moved(places, moved)
            if attrs := _slice_of(places, type_.sample):
                return source, attrs
        chain.pop()
    return None


def _moved(places: NDArray[np.int64], node: Node) -> NDArray[np.int64]:
    """What a movement does to one sample."""
    if node.op == "transpose":
        return places.transpose([axis - 1 for axis in node.attrs.ints("perm")[1:]])
    if node.op == "slice":
        bounds = (node.attrs.ints(name) for name in ("starts", "ends", "steps"))
        return places[tuple(slice(*along) for along in zip(*bounds, strict=True))]
    return places.reshape(node.type.sample)


def _slice_of(places: NDArray[np.int64], shape: tuple[int, ...]) -> dict[str, AttrValue] | None:
    """The slice of a sample that has these places, if any does; one that keeps everything is none."""
    if places.shape == shape or not places.size:
        return None
    first = np.unravel_index(places.flat[0], shape)
    starts, ends, steps = [], [], []
    for axis, size in enumerate(places.shape):
        along = np.take(places, 1, axis).flat[0] if size > 1 else places.flat[0]
        step = int(np.unravel_index(along, shape)[axis] - first[axis])
        if size > 1 and step < 1:
            return None
        starts.append(int(first[axis]))
        steps.append(max(step, 1))
        ends.append(starts[-1] + (size - 1) * steps[-1] + 1)
    taken = np.arange(int(np.prod(shape))).reshape(shape)[tuple(map(slice, starts, ends, steps))]
    if not np.array_equal(taken, places):
        return None
    return {"starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)}
