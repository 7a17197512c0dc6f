"""Many variants of one float graph at once: each runs only behind the place where it first differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qcompile.exec.tensors import fake_quantize, image_order
from qcompile.exec.torch_exec import Consts, TorchGraph, evaluate, samples_together
from qcompile.ir import Array, Graph, Grid, Node


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """What is changed: constants by node and role, and grids on which values are rounded."""

    consts: Mapping[str, Consts] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)


class VariantRunner:
    """Runs variants of a graph on one batch after the other.

    The float graph is walked once per batch; at the first place a variant touches, it branches off together with
    others that do so there, stacked along the batch dimension.  Values no variant of a stack has changed yet are
    computed once for all of them.  Memory holds the live values of one batch, times the variants of one stack.

    Args:
        graph: float graph.
        variants: what to run.
        rows: most samples times variants in a stack, fewer where values are large; at least one variant runs at a
            time.
    """

    def __init__(self, graph: Graph, variants: Sequence[Variant], rows: int = 128) -> None:
        self.graph, self.variants, self.rows = graph, variants, rows
        self.model = TorchGraph(graph)
        self.held = graph.output_values
        # Inputs come before all nodes.
        order = [*(port.name for port in graph.inputs), *(node.name for node in graph.nodes)]
        place = {name: i for i, name in enumerate(order)}
        self.begins: dict[str, list[int]] = {}
        for number, variant in enumerate(variants):
            touched = [place[name] for name in (*variant.consts, *variant.grids)]
            if not touched:
                raise ValueError(f"variant {number} changes nothing")
            self.begins.setdefault(order[min(touched)], []).append(number)
        self.index = {node.name: i for i, node in enumerate(graph.nodes)}

    def run(self, inputs: Mapping[str, Array]) -> Iterator[tuple[Sequence[int], dict[str, Tensor]]]:
        """The float outputs, under an empty list of numbers, then those of all variants in stacks.

        Yields:
            Numbers of variants, and their outputs by name, each (variants, n, …); of the float outputs (n, …).
        """
        with torch.no_grad():
            arrays = {port.name: np.array(inputs[port.name], np.float32) for port in self.graph.inputs}
            start = {name: image_order(torch.from_numpy(array)) for name, array in arrays.items()}
            yield (), self._outputs(self._walk(dict(start), 0))
            values = dict(start)
            for port in self.graph.inputs:
                yield from self._branches(port.name, values, 0)
            for i, node in enumerate(self.graph.nodes):
                yield from self._branches(node.name, values, i)
                values[node.name] = evaluate(node, [values[v] for v in node.inputs], self.model.consts_of(node))
                self._drop(values, node)

    def _walk(self, values: dict[str, Tensor], start: int) -> dict[str, Tensor]:
        for node in self.graph.nodes[start:]:
            values[node.name] = evaluate(node, [values[v] for v in node.inputs], self.model.consts_of(node))
            self._drop(values, node)
        return values

    def _drop(self, values: dict[str, Tensor], node: Node) -> None:
        for value in self.model.last_uses.get(node.name, ()):
            if value not in self.held:
                values.pop(value, None)

    def _outputs(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {out.name: values[out.value] for out in self.graph.outputs}

    def _branches(
        self, place: str, values: Mapping[str, Tensor], start: int
    ) -> Iterator[tuple[Sequence[int], dict[str, Tensor]]]:
        numbers = self.begins.get(place, [])
        if not numbers:
            return
        samples = len(next(iter(values.values())))
        size = max(1, min(self.rows, samples_together(self.graph, start)) // samples)
        for i in range(0, len(numbers), size):
            part = numbers[i : i + size]
            stack = _Stack(self, [self.variants[k] for k in part], samples, dict(values))
            yield part, stack.run(start)


class _Stack:
    """Variants side by side: `shared` holds values all have in common, `own` those stacked variant by variant."""

    def __init__(
        self, runner: VariantRunner, variants: Sequence[Variant], samples: int, shared: dict[str, Tensor]
    ) -> None:
        self.runner, self.variants, self.samples = runner, variants, samples
        self.shared = shared
        self.own: dict[str, Tensor] = {}
        for port in runner.graph.inputs:
            self._round(port.name)

    def run(self, start: int) -> dict[str, Tensor]:
        for node in self.runner.graph.nodes[start:]:
            self._evaluate(node)
            self._round(node.name)
            for value in self.runner.model.last_uses.get(node.name, ()):
                if value not in self.runner.held:
                    self.shared.pop(value, None)
                    self.own.pop(value, None)
        found = {}
        for out in self.runner.graph.outputs:
            flat = self._stacked(out.value)
            found[out.name] = flat.reshape(len(self.variants), self.samples, *flat.shape[1:])
        return found

    def _evaluate(self, node: Node) -> None:
        consts = self.runner.model.consts_of(node)
        changed = [i for i, variant in enumerate(self.variants) if node.name in variant.consts]
        together = all(value in self.shared for value in node.inputs)
        if together and not changed:
            self.shared[node.name] = evaluate(node, [self.shared[v] for v in node.inputs], consts)
            return
        if len(changed) < len(self.variants):
            if together:
                result = self._repeated(evaluate(node, [self.shared[v] for v in node.inputs], consts))
            else:
                result = evaluate(node, [self._stacked(v) for v in node.inputs], consts)
        else:
            result = None
        parts = []
        for i in changed:
            inputs = [self.shared[v] if v in self.shared else self._slice(self.own[v], i) for v in node.inputs]
            part = evaluate(node, inputs, {**consts, **self.variants[i].consts[node.name]})
            if result is None:
                parts.append(part)
            else:
                self._slice(result, i).copy_(part)
        self.own[node.name] = torch.cat(parts) if result is None else result

    def _round(self, value: str) -> None:
        """Round a value in the variants that do."""
        rounding = [i for i, variant in enumerate(self.variants) if value in variant.grids]
        if not rounding or (value not in self.shared and value not in self.own):
            return
        stacked = self._stacked(value)
        if value in self.shared:
            del self.shared[value]
        rounds = set(rounding)
        self.own[value] = torch.cat(
            [
                fake_quantize(part, self.variants[i].grids[value]) if i in rounds else part
                for i, part in enumerate(torch.split(stacked, self.samples))
            ]
        )

    def _stacked(self, value: str) -> Tensor:
        return self._repeated(self.shared[value]) if value in self.shared else self.own[value]

    def _repeated(self, x: Tensor) -> Tensor:
        # As `Tensor.repeat`, but in the memory order of `x`.
        return torch.cat([x] * len(self.variants))

    def _slice(self, x: Tensor, i: int) -> Tensor:
        return x[i * self.samples : (i + 1) * self.samples]
