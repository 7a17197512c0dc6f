"""ONNX operators that compute: layers, pooling, arithmetic, functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qcompile.capture import layers
from qcompile.capture.emit import Unsupported, Value
from qcompile.capture.onnx_node import HANDLERS, OnnxNode, handles
from qcompile.exec import unary
from qcompile.ir import Array

INF = math.inf
PRODUCT = "a product of two computed values (attention) is not supported"


def _padding(n: OnnxNode, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """(before…, after…) from `pads` or `auto_pad`."""
    rank = len(kernel)
    auto = n.attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(n.attr("pads", [0] * 2 * rank))
        if len(pads) != 2 * rank or any(p < 0 for p in pads):
            raise Unsupported(f"padding {pads}")
        return pads
    if auto == "VALID":
        return [0] * 2 * rank
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto!r}")
    strides, dilations = _window(n, rank)
    before, after = [], []
    for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small = total // 2
        before.append(small if auto == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return before + after


def _window(n: OnnxNode, rank: int) -> tuple[list[int], list[int]]:
    strides, dilations = list(n.attr("strides", [1] * rank)), list(n.attr("dilations", [1] * rank))
    if len(strides) != rank or len(dilations) != rank or any(v < 1 for v in strides + dilations):
        raise Unsupported(f"strides {strides} and dilations {dilations}")
    return strides, dilations


def _kernel(n: OnnxNode) -> list[int]:
    kernel = list(n.attr("kernel_shape", []))
    if not kernel or any(k < 1 for k in kernel):
        raise Unsupported("it has no kernel_shape")
    return kernel


@handles("Conv")
def _conv(n: OnnxNode) -> Value:
    x, w = n.value(), n.const(1)
    kernel = w.shape[2:]
    strides, dilations = _window(n, len(kernel))
    pads = _padding(n, x.shape[2:], kernel)
    groups = int(n.attr("group", 1))
    if groups < 1:
        raise Unsupported(f"{groups} groups")
    return layers.conv(n.emit, x, w, n.const_or(2), stride=strides, pad=pads, dilation=dilations, groups=groups)


@handles("Gemm")
def _gemm(n: OnnxNode) -> Value:
    x, w = n.value(), n.const(1)
    if n.attr("transA", 0):
        raise Unsupported("transA: the batch must be dimension 0")
    if w.ndim != 2 or len(x.shape) != 2:
        raise Unsupported(f"a product of {x.shape} with {w.shape}")
    w = w if n.attr("transB", 0) else w.T
    alpha, beta = float(n.attr("alpha", 1.0)), float(n.attr("beta", 1.0))
    bias = n.const_or(2)
    if bias is not None:
        if bias.size not in (1, w.shape[0]) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            raise Unsupported(f"a bias of shape {bias.shape}")
        bias = np.broadcast_to(_scaled(bias, beta).reshape(-1), (w.shape[0],))
    return layers.linear(n.emit, x, _scaled(w, alpha), bias)


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1 else array.astype(np.float64) * factor


@handles("MatMul")
def _matmul(n: OnnxNode) -> Value:
    if not isinstance(n.operand(0), Value):
        return _matmul_left(n)
    if isinstance(n.operand(1), Value):
        raise Unsupported(PRODUCT)
    x, w = n.value(), n.const(1)
    if w.ndim > 2 and w.size == w.shape[-1] * w.shape[-2]:
        w = w.reshape(w.shape[-2:])
    if w.ndim != 2:
        raise Unsupported(f"a product with weights of shape {w.shape}")
    return layers.linear(n.emit, x, w.T, None)


def _matmul_left(n: OnnxNode) -> Value:
    """w · x = (xᵀ · wᵀ)ᵀ."""
    w, x = n.const(0), n.value(1)
    if w.ndim != 2 or len(x.shape) < 2:
        raise Unsupported(f"a product of weights {w.shape} with {x.shape}")
    swap = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    return n.emit.transpose(layers.linear(n.emit, n.emit.transpose(x, swap), w, None), swap)


@handles("BatchNormalization")
def _batch_norm(n: OnnxNode) -> Value:
    if n.attr("training_mode", 0):
        raise Unsupported("it is in training mode: export the model in evaluation mode")
    return layers.batch_norm(
        n.emit, n.value(), n.const(1), n.const(2), n.const(3), n.const(4), float(n.attr("epsilon", 1e-5))
    )


def _arithmetic(op: str) -> Callable[[OnnxNode], Value]:
    return lambda n: layers.arithmetic(n.emit, op, n.operand(0), n.operand(1))


for _onnx, _op in {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}.items():
    handles(_onnx)(_arithmetic(_op))


@handles("Sum")
def _sum(n: OnnxNode) -> Value:
    total: Value | Array = n.operand(0)
    for i in range(1, len(n.inputs)):
        total = layers.arithmetic(n.emit, "add", total, n.operand(i))
    if not isinstance(total, Value):
        raise Unsupported("no operand is computed from the input")
    return total


@handles("Min", "Max")
def _extremum(n: OnnxNode) -> Value:
    values = [v for v in (n.operand(i) for i in range(len(n.inputs))) if isinstance(v, Value)]
    if len(values) != 1:
        raise Unsupported("the extremum of two computed values")
    bounds = [n.scalar(i, 0) for i in range(len(n.inputs)) if not isinstance(n.operand(i), Value)]
    if n.proto.op_type == "Max":
        return layers.clip(n.emit, values[0], max(bounds, default=-INF), INF)
    return layers.clip(n.emit, values[0], -INF, min(bounds, default=INF))


@handles("Relu")
def _relu(n: OnnxNode) -> Value:
    return layers.clip(n.emit, n.value(), 0.0, INF)


@handles("Clip")
def _clip(n: OnnxNode) -> Value:
    low, high = n.scalar(1, -INF), n.scalar(2, INF)
    limit = float(np.finfo(np.float32).max)
    # Exporters write "no bound" as the largest number.
    return layers.clip(n.emit, n.value(), low if low > -limit else -INF, high if high < limit else INF)


@handles("ThresholdedRelu")
def _thresholded(n: OnnxNode) -> Value:
    raise Unsupported("it jumps at its threshold")


@handles("LeakyRelu")
def _leaky_relu(n: OnnxNode) -> Value:
    return layers.prelu(n.emit, n.value(), float(n.attr("alpha", 0.01)))


@handles("PRelu")
def _prelu(n: OnnxNode) -> Value:
    return layers.prelu(n.emit, n.value(), n.const(1))


@handles("Pow")
def _pow(n: OnnxNode) -> Value:
    exponent = n.scalar(1, 1)
    if isinstance(n.operand(0), Value) and exponent in (1.0, 2.0, 3.0):
        return layers.function(n.emit, n.value(), {1: "x", 2: "(mul x x)", 3: "(mul (mul x x) x)"}[int(exponent)])
    return layers.function(n.emit, n.value(), unary.call("pow", "x", exponent))


_SIMPLE: dict[str, Callable[[OnnxNode], str]] = {
    name: (lambda text: lambda n: text)(unary.call(function, "x"))
    for name, function in {
        "Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos",
        "Atan": "atan", "Tanh": "tanh", "Erf": "erf", "Sigmoid": "sigmoid", "Softplus": "softplus",
        "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign",
    }.items()
}  # fmt: skip
_SIMPLE |= {
    "Reciprocal": lambda n: unary.call("div", 1.0, "x"),
    "Softsign": lambda n: unary.softsign(),
    "Mish": lambda n: unary.mish(),
    "HardSwish": lambda n: unary.hard_swish(),
    "HardSigmoid": lambda n: unary.hard_sigmoid(n.attr("alpha", 0.2), n.attr("beta", 0.5)),
    "Gelu": lambda n: unary.gelu(n.attr("approximate", "none")),
    "Elu": lambda n: unary.elu(n.attr("alpha", 1.0)),
    "Celu": lambda n: unary.celu(n.attr("alpha", 1.0)),
    "Selu": lambda n: unary.elu(n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.05070102214813232421875)),
    "Swish": lambda n: unary.silu(n.attr("alpha", 1.0)),
}


def _function(expr: Callable[[OnnxNode], str]) -> Callable[[OnnxNode], Value]:
    return lambda n: layers.function(n.emit, n.value(), expr(n))


HANDLERS.update({name: _function(expr) for name, expr in _SIMPLE.items()})


@handles("Softmax")
def _softmax(n: OnnxNode) -> Value:
    return layers.softmax(n.emit, n.value(), int(n.attr("axis", -1)))


@handles("MaxPool")
def _max_pool(n: OnnxNode) -> Value:
    if len(n.proto.output) > 1 and n.proto.output[1]:
        raise Unsupported("its second output, the indices, is not supported")
    x, kernel = n.value(), _kernel(n)
    strides, dilations = _window(n, len(kernel))
    pads = _padding(n, x.shape[2:], kernel)
    return layers.max_pool(n.emit, x, kernel, strides, pads, dilations, bool(n.attr("ceil_mode", 0)))


@handles("AveragePool")
def _average_pool(n: OnnxNode) -> Value:
    x, kernel = n.value(), _kernel(n)
    strides, dilations = _window(n, len(kernel))
    if any(d != 1 for d in dilations):
        raise Unsupported("dilation")
    pads = _padding(n, x.shape[2:], kernel)
    counted = bool(n.attr("count_include_pad", 0))
    return layers.avg_pool(n.emit, x, kernel, strides, pads, counted, bool(n.attr("ceil_mode", 0)))


def _spatial(x: Value) -> list[int]:
    if len(x.shape) < 3:
        raise Unsupported(f"{x.shape} has no spatial dimensions")
    return list(range(2, len(x.shape)))


@handles("GlobalAveragePool")
def _global_average(n: OnnxNode) -> Value:
    return layers.reduce_mean(n.emit, n.value(), _spatial(n.value()), True)


@handles("GlobalMaxPool")
def _global_max(n: OnnxNode) -> Value:
    x = n.value()
    kernel, rank = x.shape[2:], len(_spatial(x))
    return layers.max_pool(n.emit, x, kernel, [1] * rank, [0] * 2 * rank, [1] * rank, False)


@handles("ReduceMean", "ReduceSum", "ReduceMax")
def _reduce(n: OnnxNode) -> Value:
    x = n.value()
    axes = n.ints(1) if n.has(1) else list(n.attr("axes", []))
    if not axes and n.attr("noop_with_empty_axes", 0):
        return x
    axes = [a % len(x.shape) for a in (axes or range(len(x.shape)))]
    keep = bool(n.attr("keepdims", 1))
    if n.proto.op_type == "ReduceMean":
        return layers.reduce_mean(n.emit, x, axes, keep)
    if n.proto.op_type == "ReduceSum":
        return layers.reduce_sum(n.emit, x, axes, keep)
    if sorted(axes) != [2, 3] or len(x.shape) != 4:
        raise Unsupported(f"the maximum over the axes {axes}; only over rows and columns of an image")
    y = layers.max_pool(n.emit, x, x.shape[2:], [1, 1], [0] * 4, [1, 1], False)
    return y if keep else n.emit.reshape(y, y.shape[:2])
