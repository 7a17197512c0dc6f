"""Small ONNX networks built node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray[Any, Any]],
    *,
    shape: Sequence[int | str] = ("N", 4, 9, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    dtype: int = FLOAT,
) -> onnx.ModelProto:
    """A model with the input `x` and float outputs of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def one(
    op: str,
    *constants: np.ndarray[Any, Any] | None,
    shape: Sequence[int | str] = ("N", 4, 9, 8),
    opset: int = 18,
    first: bool = True,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node: the input, then constants (None for an absent one), or constants first."""
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(constants)]
    inputs = ["x", *names] if first else [*names, "x"]
    node = helper.make_node(op, inputs, ["y"], name="node", **attrs)
    held = {name: array for name, array in zip(names, constants, strict=True) if array is not None}
    return model([node], held, shape=shape, opset=opset)
