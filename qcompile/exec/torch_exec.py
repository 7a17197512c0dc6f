"""The float graph in torch: differentiable, in batches, with any value or weight replaced on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qcompile.errors import GraphError
from qcompile.exec import unary
from qcompile.exec.tensors import image_order
from qcompile.ir import FLOAT, WEIGHTED, Array, Graph, Node

Consts = Mapping[str, Tensor]
Quantize = Callable[[str, Tensor], Tensor]
"""Called with each value's name and tensor; what it returns takes the value's place."""


_HEAP_BYTES = 30 << 20
"""Of the largest tensor: more than 32 MiB the C library takes fresh from the system each time, page by page, and what
fits into a cache need not be read from memory.  Large networks run two to three times faster so."""


class TorchGraph:
    """Runs one float graph; it holds no state between runs.

    Attributes:
        weights: node name → weight of each conv2d and linear, float32 leaf tensors without gradient.
        last_uses: node name → the values that nothing reads behind it.
    """

    def __init__(self, graph: Graph) -> None:
        if graph.level != FLOAT:
            raise GraphError(f"the torch evaluator was given a graph of the level {graph.level}")
        self.graph = graph
        # A copy: constants of the graph are read-only, and torch shares memory with what it is given.
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in graph.consts.items()}
        self._consts = {node.name: {role: tensors[name] for role, name in node.consts} for node in graph.nodes}
        self.weights = {node.name: self._consts[node.name]["w"] for node in graph.nodes if node.op in WEIGHTED}
        self.last_uses = _last_uses(graph)
        self._tail = TorchGraph(graph.tail) if graph.tail is not None else None

    def consts_of(self, node: Node) -> Consts:
        """The constants of a node by role."""
        return self._consts[node.name]

    def run(
        self,
        inputs: Mapping[str, Array | Tensor],
        quantize: Quantize | None = None,
        keep: Sequence[str] = (),
        weights: Mapping[str, Tensor] | None = None,
        biases: Mapping[str, Tensor] | None = None,
        with_tail: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate the graph.

        Args:
            inputs: (n, …) by input name, arrays or tensors; converted to float32.
            quantize: applied to every value, inputs of the graph too, before it is read or returned.
            keep: names of further values to return.
            weights: replacements of `self.weights` by node name.
            biases: the same of biases, also for layers that have none.
            with_tail: run the host's output function too; the outputs are then those of the tail.

        Returns:
            Tensors by output name, and by value name for those in `keep`.
        """
        values: dict[str, Tensor] = {}
        held = {*keep, *self.graph.output_values}
        for port in self.graph.inputs:
            given = inputs[port.name]
            tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given, dtype=np.float32))
            tensor = image_order(tensor.float())
            values[port.name] = quantize(port.name, tensor) if quantize else tensor
        for node in self.graph.nodes:
            consts: Consts = self._consts[node.name]
            if weights is not None and node.name in weights:
                consts = {**consts, "w": weights[node.name]}
            if biases is not None and node.name in biases:
                consts = {**consts, "b": biases[node.name]}
            result = evaluate(node, [values[v] for v in node.inputs], consts)
            values[node.name] = quantize(node.name, result) if quantize else result
            for value in self.last_uses.get(node.name, ()):
                if value not in held:
                    del values[value]
        kept = {name: values[name] for name in keep if name in values}
        outputs = {out.name: values[out.value] for out in self.graph.outputs}
        if with_tail and self._tail is not None:
            further = [name for name in keep if name not in kept]
            return self._tail.run(outputs, keep=further) | kept
        return outputs | kept


def samples_together(graph: Graph, first: int = 0) -> int:
    """How many samples to run at a time through the nodes from number `first` on; at least 1."""
    sizes = [4 * node.type.numel for node in graph.nodes[first:]]
    return max(1, _HEAP_BYTES // max(sizes, default=1))


def parts_of(graph: Graph, batch: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The graph's inputs of a batch, so many samples at a time as should be run together."""
    step = samples_together(graph)
    count = len(batch[graph.inputs[0].name])
    for start in range(0, count, step):
        yield {port.name: batch[port.name][start : start + step] for port in graph.inputs}


def evaluate(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    """One float operator on tensors with a batch dimension."""
    return _RULES[node.op](node, inputs, consts)


def _last_uses(graph: Graph) -> dict[str, list[str]]:
    """Node → the values that nothing reads behind it."""
    found: dict[str, list[str]] = {}
    for value, users in graph.users.items():
        if users:
            found.setdefault(users[-1].name, []).append(value)
    return found


def _padded(x: Tensor, node: Node, fill: float) -> tuple[Tensor, tuple[int, int]]:
    """The input with asymmetric padding applied, and the symmetric padding left for the operator."""
    top, left, bottom, right = (int(p) for p in node.attrs.ints("pad"))
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=fill), (0, 0)


def _conv2d(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    x, pad = _padded(inputs[0], node, 0.0)
    stride, dilation = list(node.attrs.ints("stride")), list(node.attrs.ints("dilation"))
    return F.conv2d(x, consts["w"], consts.get("b"), stride, list(pad), dilation, node.attrs.int("groups"))


def _batch_norm(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    return F.batch_norm(
        inputs[0], consts["mean"], consts["var"], consts["scale"], consts["bias"], eps=node.attrs.float("eps")
    )


def _max_pool(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    kernel, stride = node.attrs.ints("kernel"), node.attrs.ints("stride")
    x, pad = _padded(inputs[0], node, -torch.inf)
    if 2 * pad[0] > int(kernel[0]) or 2 * pad[1] > int(kernel[1]):
        # torch refuses padding of more than half a window.
        x, pad = F.pad(x, (pad[1], pad[1], pad[0], pad[0]), value=-torch.inf), (0, 0)
    return F.max_pool2d(x, kernel, stride, pad, node.attrs.ints("dilation"))


def _avg_pool(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    kernel, stride = node.attrs.ints("kernel"), node.attrs.ints("stride")
    top, left, bottom, right = node.attrs.ints("pad")
    around = (left, right, top, bottom)
    mean = F.avg_pool2d(F.pad(inputs[0], around), kernel, stride)
    if node.attrs.int("count_pad"):
        return mean
    inside = F.avg_pool2d(F.pad(inputs[0].new_ones((1, 1, *inputs[0].shape[2:])), around), kernel, stride)
    return mean / inside


def _clip(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    low, high = node.attrs.float("lo"), node.attrs.float("hi")
    if (low, high) == (0.0, torch.inf):
        return F.relu(inputs[0])
    return inputs[0].clamp(low, high)


def _prelu(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    return torch.where(inputs[0] >= 0, inputs[0], inputs[0] * consts["slope"])


def _slice(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    parts = zip(node.attrs.ints("starts"), node.attrs.ints("ends"), node.attrs.ints("steps"), strict=True)
    return inputs[0][(slice(None), *(slice(a, b, s) for a, b, s in parts))]


def _pad(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    pads = node.attrs.ints("pads")
    half = len(pads) // 2
    # torch counts from the last axis.
    around = [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
    return F.pad(inputs[0], around, value=node.attrs.float("value"))


def _resize(node: Node, inputs: Sequence[Tensor], consts: Consts) -> Tensor:
    rows, cols = list(node.attrs.ints("rows")), list(node.attrs.ints("cols"))
    return inputs[0][:, :, rows][:, :, :, cols]


_RULES: Mapping[str, Callable[[Node, Sequence[Tensor], Consts], Tensor]] = {
    "conv2d": _conv2d,
    "linear": lambda node, xs, c: F.linear(xs[0], c["w"], c.get("b")),
    "batch_norm": _batch_norm,
    "affine": lambda node, xs, c: xs[0] * c["scale"] + c["shift"],
    "add": lambda node, xs, c: xs[0] + xs[1],
    "sub": lambda node, xs, c: xs[0] - xs[1],
    "mul": lambda node, xs, c: xs[0] * xs[1],
    "clip": _clip,
    "prelu": _prelu,
    "unary": lambda node, xs, c: unary.evaluate_torch(node.attrs.str("expr"), xs[0]),
    "softmax": lambda node, xs, c: xs[0].softmax(dim=node.attrs.int("axis")),
    "avg_pool": _avg_pool,
    "reduce_mean": lambda node, xs, c: xs[0].mean(
        dim=node.attrs.ints("axes"), keepdim=bool(node.attrs.int("keepdims"))
    ),
    "max_pool": _max_pool,
    "concat": lambda node, xs, c: torch.cat(list(xs), dim=node.attrs.int("axis")),
    "reshape": lambda node, xs, c: xs[0].reshape(len(xs[0]), *node.attrs.ints("shape")[1:]),
    "transpose": lambda node, xs, c: xs[0].permute(node.attrs.ints("perm")),
    "slice": _slice,
    "pad": _pad,
    "resize": _resize,
}
