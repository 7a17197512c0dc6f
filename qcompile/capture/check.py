"""Does a captured graph compute what its source computes?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompile.errors import CaptureError
from qcompile.exec import float_exec
from qcompile.ir import Array, Graph

RTOL = 1e-3


def check_capture(
    graph: Graph, model: Any, inputs: Mapping[str, Array] | None = None, *, rtol: float = RTOL, seed: int = 0
) -> float:
    """Compare a captured graph with its source on sample input.

    Args:
        graph: what `qcompile.capture.capture` returned for `model`.
        model: the path or onnx.ModelProto (run by onnxruntime), or the torch module or exported program.
        inputs: float32 (n, …) by input name; default: random samples, two where the model takes a batch.
        rtol: allowed max |Δ| of each output, relative to its largest magnitude.

    Returns:
        The largest relative difference of an output.

    Raises:
        CaptureError: they differ; names the first value that does, where the source's values can be seen.
    """
    onnx_model = isinstance(model, str | os.PathLike) or type(model).__name__ == "ModelProto"
    run = _OnnxRunner(model) if onnx_model else _TorchRunner(model)
    samples = inputs or _samples(graph, run.batch, seed)
    expected = run(graph, samples)
    actual = float_exec.run(graph, samples)
    worst = 0.0
    for out, reference in zip(graph.outputs, expected, strict=True):
        error = _difference(actual[out.name], reference)
        if error > rtol:
            where = run.first_difference(graph, samples, rtol)
            first = f"; the first value that differs is {where!r}" if where else ""
            raise CaptureError(
                f"output {out.name!r} of the captured graph differs from the model's by {error:.2g} of its "
                f"magnitude{first}",
                hint="this is a defect of qcompile's capture; please report the model",
            )
        worst = max(worst, error)
    return worst


def _samples(graph: Graph, batch: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {p.name: rng.uniform(-1, 1, (batch, *p.type.sample)).astype(np.float32) for p in graph.inputs}


def _difference(actual: Array, expected: Array) -> float:
    """max |Δ| / max |expected|; infinity where shapes differ or a value is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    delta = np.abs(a - b)[np.isfinite(b)]
    scale = np.abs(b)[np.isfinite(b)].max(initial=0.0)
    return float(delta.max(initial=0.0) / max(scale, 1e-30))


class _OnnxRunner:
    """The model in onnxruntime."""

    def __init__(self, model: Any) -> None:
        from qcompile.capture.onnx_load import load_model
        from qcompile.exec.ort_exec import OrtModel

        self.model = load_model(model) if isinstance(model, str | os.PathLike) else model
        self.session = OrtModel(self.model)
        ports = {port.name: port for port in self.model.graph.input}
        fixed = [ports[name].type.tensor_type.shape.dim[0].dim_value for name in self.session.inputs]
        self.batch = 1 if any(fixed) else 2

    def __call__(self, graph: Graph, samples: Mapping[str, Array]) -> list[Array]:
        found = self.session.run(self._feeds(graph, samples))
        return [found[name] for name in self.session.outputs]

    def _feeds(self, graph: Graph, samples: Mapping[str, Array]) -> dict[str, Array]:
        return {name: samples[port.name] for name, port in zip(self.session.inputs, graph.inputs, strict=True)}

    def first_difference(self, graph: Graph, samples: Mapping[str, Array], rtol: float) -> str | None:
        """The first node whose value differs; found by making every value of the model an output."""
        import onnx

        from qcompile.exec.ort_exec import OrtModel

        # A node of the graph knows its source by the source node's name, or its output's where it has none.
        source = {node.name or node.output[0]: node.output[0] for node in self.model.graph.node if node.output}
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        have = {port.name for port in shown.graph.output}
        shown.graph.output.extend(onnx.ValueInfoProto(name=v) for v in source.values() if v not in have)
        try:
            expected = OrtModel(shown, optimize=False).run(self._feeds(graph, samples))
        except CaptureError:
            return None
        last = {node.origin[0]: node.name for node in graph.nodes if node.origin}
        names = [name for origin, name in last.items() if source.get(origin) in expected]
        actual = float_exec.run(graph, samples, keep=names)
        for origin, name in last.items():
            value = source.get(origin)
            if value not in expected or expected[value].size != actual[name].size:
                continue
            if _difference(actual[name].reshape(expected[value].shape), expected[value]) > rtol:
                return name
        return None


class _TorchRunner:
    """A torch module in evaluation mode, or an exported program."""

    def __init__(self, model: Any) -> None:
        self.model = model.module() if hasattr(model, "graph_signature") else model
        self.batch = 1 if hasattr(model, "graph_signature") else 2

    def __call__(self, graph: Graph, samples: Mapping[str, Array]) -> list[Array]:
        import torch

        training = [m for m in self.model.modules() if m.training]
        for part in training:
            part.training = False
        try:
            with torch.no_grad():
                result = self.model(*(torch.from_numpy(np.array(samples[port.name])) for port in graph.inputs))
        finally:
            for part in training:
                part.training = True
        if isinstance(result, Mapping):
            result = list(result.values())
        outputs: Sequence[Any] = result if isinstance(result, list | tuple) else [result]
        return [np.asarray(value.numpy()) for value in outputs]

    def first_difference(self, graph: Graph, samples: Mapping[str, Array], rtol: float) -> str | None:
        return None


__all__ = ["check_capture"]
