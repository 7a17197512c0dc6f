"""ONNX → float graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from qcompile.capture.emit import Const, Emitter, Unsupported, Value, clean, module_path
from qcompile.capture.onnx_layers import PRODUCT
from qcompile.capture.onnx_load import embed, load_model
from qcompile.capture.onnx_node import HANDLERS, OnnxNode
from qcompile.capture.report import Problem, unsupported
from qcompile.errors import CaptureError, GraphError
from qcompile.ir import Array, Graph, verify

OPSETS = (13, onnx.defs.onnx_opset_version())
MAX_FOLDED = 1 << 28
"""Elements a folded constant may have."""

_STANDARD = ("", "ai.onnx")
_GROWING = ("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "EyeLike")
# Operators on constants that are never evaluated: with subgraphs, random, or of sequences and text.
_NEVER_FOLDED = frozenset(
    {
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
    | {"Multinomial", "Bernoulli", "StringNormalizer", "TfIdfVectorizer", "RegexFullMatch", "ImageDecoder"}
)


def supported_ops() -> tuple[str, ...]:
    """The ONNX operators that can be captured when they depend on the input (constants fold anyway)."""
    return tuple(sorted({*HANDLERS, "Constant", "ConstantOfShape", "Shape", "Size"}))


def capture_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
) -> Graph:
    """Capture an ONNX model.

    Args:
        model: path, or a model in memory (without external data).
        shapes: by input name, shapes for inputs whose dimensions the model leaves open; the first is the
        batch. name: the graph's name; default: the file's.

    Raises:
        CaptureError: damaged, unsafe, not an image network, or non-finite weights.
        UnsupportedOpError: lists every node that cannot be captured.
    """
    if isinstance(model, onnx.ModelProto):
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        proto = embed(copied, None)
    else:
        proto = load_model(model)
        name = name or Path(model).stem
    opset = _opset(proto)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    return _Capture(proto, opset, shapes or {}, name or proto.graph.name or "network").run()


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD]
    version = max(versions, default=0)
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise CaptureError(
            f"the model uses ONNX opset {version}; supported are {OPSETS[0]} to {OPSETS[1]}",
            hint="convert it with onnx.version_converter.convert_version, or export it again",
        )
    return version


class _Capture:
    """One run of a capture; values are Value, Const, or None after a problem."""

    def __init__(self, model: onnx.ModelProto, opset: int, shapes: Mapping[str, Sequence[int]], name: str) -> None:
        self.model, self.graph, self.opset, self.shapes = model, model.graph, opset, shapes
        self.emit = Emitter(name)
        self.values: dict[str, Value | Const | None] = {}
        self.problems: list[Problem] = []

    def run(self) -> Graph:
        self._constants()
        self._inputs()
        for node in self.graph.node:
            self._visit(node)
        if self.problems:
            raise unsupported(self.problems, supported_ops())
        self._outputs()
        graph = self.emit.builder.build()
        verify(graph)
        return graph

    def _constants(self) -> None:
        if self.graph.sparse_initializer:
            raise CaptureError("the model holds sparse weights", hint="store them as dense tensors")
        for tensor in self.graph.initializer:
            self.values[tensor.name] = Const(to_array(tensor), tensor.name)

    def _inputs(self) -> None:
        ports = [port for port in self.graph.input if port.name not in self.values]
        if not ports:
            raise CaptureError("the model has no input")
        if unknown := set(self.shapes) - {port.name for port in ports}:
            given = ", ".join(repr(port.name) for port in ports)
            raise CaptureError(f"a shape is given for {sorted(unknown)[0]!r}; the model's inputs are {given}")
        for port in ports:
            self.values[port.name] = self.emit.input(port.name, self._shape(port))

    def _shape(self, port: onnx.ValueInfoProto) -> tuple[int, ...]:
        """The shape of an input with a batch of 1."""
        kind = port.type.tensor_type
        if not port.type.HasField("tensor_type") or kind.elem_type != onnx.TensorProto.FLOAT:
            held = onnx.TensorProto.DataType.Name(kind.elem_type) if kind.elem_type in range(1, 24) else "no tensor"
            self.problems.append(
                Problem(port.name, "input", f"it holds {held}; inputs must be FLOAT (float32) tensors")
            )
            kind = onnx.TypeProto.Tensor() if not port.type.HasField("tensor_type") else kind
        flag = f"--shape {port.name}:1x3x224x224 (shapes={{{port.name!r}: (1, 3, 224, 224)}} in Python)"
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if port.name in self.shapes:
            given = list(self.shapes[port.name])
            fixed = [(g, d) for g, d in zip(given[1:], dims[1:], strict=False) if d is not None and d != g]
            if not given or (dims and len(given) != len(dims)) or fixed or any(g < 1 for g in given[1:]):
                raise CaptureError(f"the shape {tuple(given)} does not fit input {port.name!r} of shape {dims}")
            return (1, *(int(g) for g in given[1:]))
        if not dims:
            raise CaptureError(
                f"input {port.name!r} has no known shape with a batch dimension", hint=f"give it: {flag}"
            )
        if open_dims := [i for i, d in enumerate(dims) if i and (d is None or d < 1)]:
            raise CaptureError(
                f"dimension {open_dims[0]} of input {port.name!r} is not fixed",
                hint=f"give the shape: {flag}",
            )
        if dims[0] is not None and dims[0] not in (0, 1):
            raise CaptureError(
                f"input {port.name!r} has the fixed first dimension {dims[0]}; it must be the batch",
                hint="export the model with a batch of 1 or with a symbolic batch dimension",
            )
        return (1, *(int(d) for d in dims[1:] if d is not None))

    def _visit(self, node: onnx.NodeProto) -> None:
        shown = node.name or next(iter(node.output), "?")
        known = node.domain in _STANDARD
        inputs = [self.values.get(name) if name else None for name in node.input]
        undefined = [name for name in node.input if name and name not in self.values]
        if undefined:
            self._failed(node, shown, f"it reads {undefined[0]!r}, which nothing before it computes")
            return
        broken = any(value is None for name, value in zip(node.input, inputs, strict=True) if name)
        constant = not broken and not any(isinstance(value, Value) for value in inputs)
        if not known or (node.op_type not in HANDLERS and not constant and node.op_type not in ("Shape", "Size")):
            domain = f" of the domain {node.domain!r}" if not known else ""
            self._failed(node, shown, f"the operator{domain} is not supported")
            return
        if broken:
            if node.op_type == "MatMul" and not any(isinstance(value, Const) for value in inputs):
                self._failed(node, shown, PRODUCT)
                return
            self._set(node, [None] * len(node.output))
            return
        try:
            self._set(node, self._evaluate(node, inputs, constant))
        except (Unsupported, GraphError) as refusal:
            self._failed(node, shown, refusal.message if isinstance(refusal, GraphError) else str(refusal))
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            ZeroDivisionError,
        ) as error:
            self._failed(node, shown, f"it is malformed: {str(error) or type(error).__name__}")

    def _evaluate(
        self, node: onnx.NodeProto, inputs: list[Value | Const | None], constant: bool
    ) -> Sequence[Value | Const | None]:
        if node.op_type in ("Shape", "Size") and isinstance(inputs[0], Value):
            return [Const(_shape_of(node, inputs[0].shape), "")]
        if constant:
            return fold(node, [v for v in inputs if not isinstance(v, Value)], self.opset)
        view = OnnxNode(node, inputs, self.emit, self.opset)
        self.emit.at(node_name(node, inputs), node.name or node.output[0])
        result = HANDLERS[node.op_type](view)
        return result if isinstance(result, list) else [result]

    def _set(self, node: onnx.NodeProto, results: Sequence[Value | Const | None]) -> None:
        for name, value in zip(node.output, results, strict=False):
            self.values[name] = value
        # Outputs a handler does not compute (the mask of a dropout): a problem only for who reads them.

    def _failed(self, node: onnx.NodeProto, shown: str, reason: str) -> None:
        self.problems.append(Problem(shown, node.op_type, reason))
        self._set(node, [None] * len(node.output))

    def _outputs(self) -> None:
        if not self.graph.output:
            raise CaptureError("the model has no output")
        for port in self.graph.output:
            value = self.values.get(port.name)
            if not isinstance(value, Value):
                raise CaptureError(f"output {port.name!r} does not depend on the input")
            if not value.shape or value.shape[0] != 1:
                raise CaptureError(f"output {port.name!r} of shape {value.shape} does not have the batch first")
            self.emit.builder.output(clean(port.name), value.name)


def to_array(tensor: onnx.TensorProto) -> Array:
    """A tensor's content; CaptureError where it is damaged or not finite."""
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        NotImplementedError,
    ) as error:
        raise CaptureError(f"tensor {tensor.name!r} is damaged: {error}") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CaptureError(f"tensor {tensor.name!r} holds NaN or infinity")
    return array


def _shape_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64))
    attrs = {a.name: a.i for a in node.attribute}
    return np.asarray(shape[attrs.get("start", 0) : attrs.get("end", len(shape))], dtype=np.int64)


def fold(node: onnx.NodeProto, inputs: Sequence[Const | None], opset: int) -> list[Const]:
    """Evaluate an operator whose inputs are all constants."""
    if node.op_type in _NEVER_FOLDED or any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
        raise Unsupported("the operator is not supported")
    label = next((c.name for c in inputs if c is not None), "")
    if node.op_type == "Constant":
        tensors = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
        if tensors:
            return [Const(to_array(tensors[0]), node.output[0])]
        label = node.output[0]
    sizes = [c.array for c in inputs if c is not None and c.array.dtype.kind == "i"]
    # A small input must not ask for a huge output; for operators that create, integers are sizes.
    if node.op_type in _GROWING and any(_product(a) > MAX_FOLDED for a in sizes):
        raise Unsupported("it would create a huge constant")
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    for i, value in enumerate(bare.input):
        bare.input[i] = value and f"i{i}"
    kept = [i for i, value in enumerate(bare.output) if value]
    feeds = {f"i{i}": c.array for i, c in enumerate(inputs) if c is not None}
    ports = [onnx.ValueInfoProto(name=key) for key in feeds]
    graph = onnx.helper.make_graph([bare], "fold", ports, [onnx.ValueInfoProto(name=bare.output[i]) for i in kept])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        # The evaluator raises whatever NumPy does on malformed input; all of it means the same here.
        raise Unsupported(f"it cannot be evaluated: {error}") from None
    return [Const(np.asarray(result), label) for result in results]


def _product(array: Array) -> float:
    return float(np.prod(np.abs(array.astype(np.float64)).clip(1)))


def node_name(node: onnx.NodeProto, inputs: Sequence[Value | Const | None]) -> str:
    """The module path where a weight or the scope tells it, else the node's or its output's name."""
    for const in inputs[1:]:
        if isinstance(const, Const) and (path := module_path(const.name)):
            return path
    if node.name.startswith("/"):
        return scope_path(node.name)
    return node.name or node.output[0]


def scope_path(name: str) -> str:
    """The module path in a node name of torch's exporter: /layer1/layer1.0/conv1/Conv → layer1.0.conv1."""
    parts: list[str] = []
    segments = [part for part in name.split("/") if part]
    for segment in segments[:-1]:
        if parts and segment.startswith(f"{parts[-1]}."):
            parts[-1] = segment
        else:
            parts.append(segment)
    return ".".join(parts) or segments[-1]
