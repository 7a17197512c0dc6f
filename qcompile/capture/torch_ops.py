"""The table of torch operators, for torch.export and torch.fx alike.

A handler has the name and the parameter names of the torch function; ATen's positional order, where it
differs from `torch.nn.functional`, is that of the parameters here.  Parameters that cannot matter for
inference are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from qcompile.capture import layers
from qcompile.capture.emit import Const, Emitter, Unsupported, Value, normal_axis
from qcompile.exec import unary
from qcompile.ir import Array

Handler = Callable[..., Any]
H = TypeVar("H", bound=Callable[..., Any])
TORCH_OPS: dict[str, Handler] = {}
INF = math.inf


def op(*names: str) -> Callable[[H], H]:
    """Register a handler under the names of a torch function."""

    def register(handler: H) -> H:
        TORCH_OPS.update(dict.fromkeys(names, handler))
        return handler

    return register


def value(x: Any) -> Value:
    if not isinstance(x, Value):
        raise Unsupported("its first operand is a constant")
    return x


def array(x: Any, what: str) -> Array:
    if isinstance(x, Value):
        raise Unsupported(f"its {what} is computed from the network's input; it must be a constant")
    return x.array if isinstance(x, Const) else np.asarray(x)


def array_or(x: Any, what: str) -> Array | None:
    return None if x is None else array(x, what)


def many(x: Any, rank: int) -> list[int]:
    """An integer or a list of them, as a list of `rank`."""
    items = [int(v) for v in x] if isinstance(x, Sequence) else [int(x)]
    return items * rank if len(items) == 1 else items


def flat(args: tuple[Any, ...]) -> list[int]:
    """view(2, 3) and view((2, 3)) alike."""
    items = args[0] if len(args) == 1 and isinstance(args[0], Sequence) else args
    return [int(v) for v in items]


def _conv(rank: int) -> Handler:
    def conv(
        e: Emitter, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Value:  # fmt: skip
        x, w = value(input), array(weight, "weight")
        strides, dilations = many(stride, rank), many(dilation, rank)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilations, w.shape[2:], strict=True)]
            pads = [t // 2 for t in total] + [t - t // 2 for t in total]
        else:
            pads = many(0 if padding == "valid" else padding, rank) * 2
        return layers.conv(e, x, w, array_or(bias, "bias"), stride=strides, pad=pads, dilation=dilations, groups=groups)

    return conv


op("conv1d")(_conv(1))
op("conv2d")(_conv(2))


@op("convolution")
def _convolution(
    e: Emitter, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    if transposed:
        raise Unsupported("a transposed convolution")
    return _conv(len(stride))(e, input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]


@op("linear")
def _linear(e: Emitter, input: Any, weight: Any, bias: Any = None) -> Value:
    return layers.linear(e, value(input), array(weight, "weight"), array_or(bias, "bias"))


@op("addmm")
def _addmm(e: Emitter, input: Any, mat1: Any, mat2: Any, beta: float = 1, alpha: float = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise Unsupported("factors other than 1")
    return layers.linear(e, value(mat1), array(mat2, "second operand").T, array(input, "bias"))


@op("matmul", "mm")
def _matmul(e: Emitter, input: Any, other: Any) -> Value:
    if isinstance(other, Value):
        raise Unsupported("a product of two computed values (attention) is not supported")
    return layers.linear(e, value(input), array(other, "second operand").T, None)


@op("batch_norm")
def _batch_norm(
    e: Emitter, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    if training or running_mean is None:
        raise Unsupported("it normalises by the batch's own statistics: put the module in evaluation mode")
    mean, var = array(running_mean, "mean"), array(running_var, "variance")
    scale = np.ones_like(mean) if weight is None else array(weight, "weight")
    shift = np.zeros_like(mean) if bias is None else array(bias, "bias")
    return layers.batch_norm(e, value(input), scale, shift, mean, var, eps)


@op("_native_batch_norm_legit_no_training")
def _native_batch_norm(e: Emitter, x: Any, w: Any, b: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    return (_batch_norm(e, x, w, b, mean, var, eps=eps), None, None)


def _operand(x: Any) -> Value | Array:
    return x if isinstance(x, Value) else np.asarray(array(x, "operand"))


def _arithmetic(name: str) -> Handler:
    def compute(e: Emitter, input: Any, other: Any, alpha: float = 1, rounding_mode: Any = None, **_: Any) -> Value:
        if rounding_mode is not None:
            raise Unsupported("a rounded division")
        a, b = _operand(input), _operand(other)
        if alpha != 1:
            factor = np.asarray(alpha, dtype=np.float64)
            b = layers.arithmetic(e, "mul", b, factor) if isinstance(b, Value) else factor * np.float64(b)
        return layers.arithmetic(e, name, a, b)

    return compute


for _name, _spellings in {
    "add": ("add", "add_", "iadd"), "sub": ("sub", "sub_", "isub", "subtract"),
    "mul": ("mul", "mul_", "imul", "multiply"), "div": ("div", "div_", "truediv", "true_divide"),
}.items():  # fmt: skip
    op(*_spellings)(_arithmetic(_name))


@op("rsub")
def _rsub(e: Emitter, input: Any, other: Any, alpha: float = 1) -> Value:
    return layers.arithmetic(e, "sub", _operand(other), _operand(input))


@op("relu", "relu_")
def _relu(e: Emitter, input: Any, inplace: bool = False) -> Value:
    return layers.clip(e, value(input), 0.0, INF)


@op("relu6", "relu6_")
def _relu6(e: Emitter, input: Any, inplace: bool = False) -> Value:
    return layers.clip(e, value(input), 0.0, 6.0)


@op("hardtanh", "hardtanh_")
def _hardtanh(e: Emitter, input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return layers.clip(e, value(input), min_val, max_val)


@op("clamp", "clamp_", "clip")
def _clamp(e: Emitter, input: Any, min: Any = None, max: Any = None) -> Value:
    low, high = -INF if min is None else min, INF if max is None else max
    if isinstance(low, Value) or isinstance(high, Value):
        raise Unsupported("its bounds are computed")
    return layers.clip(e, value(input), float(low), float(high))


@op("clamp_min", "clamp_min_")
def _clamp_min(e: Emitter, input: Any, min: float) -> Value:
    return layers.clip(e, value(input), float(min), INF)


@op("clamp_max", "clamp_max_")
def _clamp_max(e: Emitter, input: Any, max: float) -> Value:
    return layers.clip(e, value(input), -INF, float(max))


@op("leaky_relu", "leaky_relu_")
def _leaky_relu(e: Emitter, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return layers.prelu(e, value(input), negative_slope)


@op("prelu")
def _prelu(e: Emitter, input: Any, weight: Any) -> Value:
    x, slope = value(input), array(weight, "weight")
    # Shaped like the exporter's: one slope for each channel, broadcast over what follows.
    return layers.prelu(e, x, slope.reshape((-1,) + (1,) * (len(x.shape) - 2)) if len(x.shape) > 1 else slope)


@op("pow", "pow_")
def _pow(e: Emitter, input: Any, exponent: Any) -> Value:
    power = float(array(exponent, "exponent"))
    named = {1.0: "x", 2.0: "(mul x x)", 3.0: "(mul (mul x x) x)"}
    return layers.function(e, value(input), named.get(power) or unary.call("pow", "x", power))


_FUNCTIONS: dict[str, Callable[..., str]] = {
    name: (lambda text: lambda **_: text)(unary.call(name, "x"))
    for name in ("neg", "abs", "exp", "log", "sqrt", "sin", "cos", "atan", "tanh", "erf", "sigmoid", "floor",
                 "ceil", "round", "sign")
}  # fmt: skip
_FUNCTIONS |= {
    "reciprocal": lambda **_: unary.call("div", 1.0, "x"),
    "rsqrt": lambda **_: unary.call("div", 1.0, unary.call("sqrt", "x")),
    "square": lambda **_: "(mul x x)",
    "silu": lambda **_: unary.silu(),
    "mish": lambda **_: unary.mish(),
    "softsign": lambda **_: unary.softsign(),
    "hardswish": lambda **_: unary.hard_swish(),
    "hardsigmoid": lambda **_: unary.hard_sigmoid(),
    "logsigmoid": lambda **_: "(neg (softplus (neg x)))",
}


def _function(expr: Callable[..., str]) -> Handler:
    return lambda e, input, *_, **kwargs: layers.function(e, value(input), expr(**kwargs))


for _name, _expr in _FUNCTIONS.items():
    op(_name, f"{_name}_")(_function(_expr))


@op("gelu", "gelu_")
def _gelu(e: Emitter, input: Any, approximate: str = "none") -> Value:
    return layers.function(e, value(input), unary.gelu(approximate))


@op("elu", "elu_")
def _elu(
    e: Emitter,
    input: Any,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    inplace: bool = False,
) -> Value:
    if input_scale != 1:
        raise Unsupported("an input scale")
    return layers.function(e, value(input), unary.elu(alpha, scale))


@op("celu", "celu_")
def _celu(e: Emitter, input: Any, alpha: float = 1.0, inplace: bool = False) -> Value:
    return layers.function(e, value(input), unary.celu(alpha))


@op("selu", "selu_")
def _selu(e: Emitter, input: Any, inplace: bool = False) -> Value:
    return layers.function(e, value(input), unary.elu(1.6732632423543772, 1.0507009873554805))


@op("softplus")
def _softplus(e: Emitter, input: Any, beta: float = 1.0, threshold: float = 20.0) -> Value:
    text = unary.call("softplus", unary.affine(beta, 0.0))
    return layers.function(e, value(input), text if beta == 1 else unary.call("div", text, beta))


@op("softmax", "_softmax")
def _softmax(e: Emitter, input: Any, dim: int | None = None, *_: Any, **__: Any) -> Value:
    if dim is None:
        raise Unsupported("its dimension is not given")
    return layers.softmax(e, value(input), dim)


@op("max_pool1d", "max_pool2d")
def _max_pool(
    e: Emitter, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    if return_indices:
        raise Unsupported("its indices")
    x = value(input)
    rank = len(x.shape) - 2
    kernel = many(kernel_size, rank)
    strides = many(stride, rank) if stride not in (None, [], ()) else kernel
    return layers.max_pool(e, x, kernel, strides, many(padding, rank) * 2, many(dilation, rank), ceil_mode)


@op("max_pool2d_with_indices")
def _max_pool_with_indices(e: Emitter, *args: Any) -> Any:
    return (_max_pool(e, *args), None)


@op("avg_pool1d", "avg_pool2d")
def _avg_pool(
    e: Emitter, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    if divisor_override is not None:
        raise Unsupported("divisor_override")
    x = value(input)
    rank = len(x.shape) - 2
    kernel = many(kernel_size, rank)
    strides = many(stride, rank) if stride not in (None, [], ()) else kernel
    return layers.avg_pool(e, x, kernel, strides, many(padding, rank) * 2, count_include_pad, ceil_mode)


def _adaptive(x: Value, output_size: Any) -> tuple[list[int], bool]:
    """The window of an adaptive pooling, and whether it is the whole image."""
    spatial = list(x.shape[2:])
    sizes = list(output_size) if isinstance(output_size, Sequence) else [output_size] * len(spatial)
    sizes = [have if want is None else int(want) for want, have in zip(sizes, spatial, strict=True)]
    if any(have % want for want, have in zip(sizes, spatial, strict=True)):
        raise Unsupported(f"it pools {spatial} to {sizes} in windows of different sizes")
    return [have // want for want, have in zip(sizes, spatial, strict=True)], all(s == 1 for s in sizes)


@op("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(e: Emitter, input: Any, output_size: Any) -> Value:
    x = value(input)
    kernel, whole = _adaptive(x, output_size)
    if whole:
        return layers.reduce_mean(e, x, range(2, len(x.shape)), True)
    return layers.avg_pool(e, x, kernel, kernel, [0] * 2 * len(kernel), True, False)


@op("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(e: Emitter, input: Any, output_size: Any, return_indices: bool = False) -> Any:
    x = value(input)
    kernel, _ = _adaptive(x, output_size)
    y = layers.max_pool(e, x, kernel, kernel, [0] * 2 * len(kernel), [1] * len(kernel), False)
    return (y, None) if return_indices else y


def _dims(x: Value, dim: Any) -> list[int]:
    given = range(len(x.shape)) if dim is None or dim in ([], ()) else dim
    return [normal_axis(int(d), len(x.shape)) for d in (given if isinstance(given, Sequence) else [given])]


@op("mean")
def _mean(e: Emitter, input: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return layers.reduce_mean(e, value(input), _dims(value(input), dim), keepdim)


@op("sum")
def _sum(e: Emitter, input: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return layers.reduce_sum(e, value(input), _dims(value(input), dim), keepdim)


from qcompile.capture import torch_movement  # noqa: E402, F401  (it fills the table)
