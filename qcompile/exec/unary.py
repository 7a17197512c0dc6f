"""The expression language of the `unary` operator, and the one definition of its functions.

An expression is a prefix s-expression over `x`, numbers and the functions of `FUNCTIONS`: `(mul x (sigmoid
x))`. It is data: parsing it never runs code.  NumPy only; the torch definitions are looked up by attribute on
the module that the caller passes in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qcompile.errors import GraphError
from qcompile.ir import Array

Expr = str | float | tuple["Expr", ...]
"""`"x"`, a number, or (function, argument, …)."""

_MAX_DEPTH = 100
_TOKEN = re.compile(r"\s*(?:([()])|([^\s()]+))")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language: how many arguments it takes and what it means in NumPy and torch."""

    arity: int
    numpy: Callable[..., Any]
    torch: Callable[..., Any]


_ERF = np.frompyfunc(math.erf, 1, 1)


def _erf(a: Any) -> Any:
    return np.asarray(_ERF(a)).astype(np.asarray(a).dtype)


def _sigmoid(a: Any) -> Any:
    # The exponential of a negative number only: never overflows.
    small = np.exp(-np.abs(a))
    return np.where(np.asarray(a) >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(a: Any) -> Any:
    return np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a)))


def _named(name: str) -> Callable[..., Any]:
    """A torch function by name; the module comes with the call, so that this file does not import torch."""
    return lambda torch, *args: getattr(torch, name)(*args)


def _torch_softplus(torch: Any, a: Any) -> Any:
    return torch.nn.functional.softplus(a, threshold=100.0)


FUNCTIONS: Mapping[str, Function] = {
    "add": Function(2, np.add, lambda _, a, b: a + b),
    "sub": Function(2, np.subtract, lambda _, a, b: a - b),
    "mul": Function(2, np.multiply, lambda _, a, b: a * b),
    "div": Function(2, np.divide, lambda _, a, b: a / b),
    "max": Function(2, np.maximum, _named("maximum")),
    "min": Function(2, np.minimum, _named("minimum")),
    "pow": Function(2, np.power, _named("pow")),
    "neg": Function(1, np.negative, _named("neg")),
    "abs": Function(1, np.abs, _named("abs")),
    "exp": Function(1, np.exp, _named("exp")),
    "log": Function(1, np.log, _named("log")),
    "sqrt": Function(1, np.sqrt, _named("sqrt")),
    "sin": Function(1, np.sin, _named("sin")),
    "cos": Function(1, np.cos, _named("cos")),
    "atan": Function(1, np.arctan, _named("atan")),
    "tanh": Function(1, np.tanh, _named("tanh")),
    "erf": Function(1, _erf, _named("erf")),
    "sigmoid": Function(1, _sigmoid, _named("sigmoid")),
    "softplus": Function(1, _softplus, _torch_softplus),
    "floor": Function(1, np.floor, _named("floor")),
    "ceil": Function(1, np.ceil, _named("ceil")),
    "round": Function(1, np.rint, _named("round")),
    "sign": Function(1, np.sign, _named("sign")),
}


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """The tree of an expression; GraphError where it is not one."""
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise GraphError(f"cannot read the expression {text!r}")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    stack: list[list[Expr]] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
            if len(stack) > _MAX_DEPTH:
                raise GraphError(f"the expression is nested more than {_MAX_DEPTH} deep")
        elif token == ")":
            if len(stack) == 1:
                raise GraphError(f"a parenthesis too many in the expression {text!r}")
            call = stack.pop()
            stack[-1].append(_checked(call, text))
        else:
            stack[-1].append(token if token == "x" or token in FUNCTIONS else _number(token, text))
    if len(stack) != 1 or len(stack[0]) != 1 or stack[0][0] in FUNCTIONS:
        raise GraphError(f"{text!r} is not one expression")
    return stack[0][0]


def _checked(call: list[Expr], text: str) -> Expr:
    name = call[0] if call else None
    function = FUNCTIONS.get(name) if isinstance(name, str) else None
    if function is None or len(call) != function.arity + 1 or any(a in FUNCTIONS for a in call[1:]):
        raise GraphError(f"bad call of {name!r} in the expression {text!r}", hint=f"functions: {', '.join(FUNCTIONS)}")
    return tuple(call)


def _number(token: str, text: str) -> float:
    try:
        return float(token)
    except ValueError:
        raise GraphError(f"{token!r} in the expression {text!r} is no number and no function") from None


def number(value: float) -> str:
    """The shortest text of a float32 number: `0.1`, `6.0`."""
    return str(np.float32(value))


def call(function: str, *args: str | float) -> str:
    """Text of a call; arguments are expressions or numbers: call("mul", "x", call("sigmoid", "x"))."""
    return f"({' '.join([function, *(a if isinstance(a, str) else number(a) for a in args)])})"


def compose(outer: str, inner: str) -> str:
    """The expression of outer(inner(x))."""
    return re.sub(r"(?<![^\s(])x(?![^\s)])", lambda _: inner, outer)


def affine(scale: float, shift: float, inner: str = "x") -> str:
    """scale · inner + shift, without what is neutral."""
    scaled = inner if scale == 1 else call("mul", inner, scale)
    return scaled if shift == 0 else call("add", scaled, shift)


def clip(low: float, high: float, inner: str = "x") -> str:
    """inner limited to [low, high], either of which may be infinite."""
    raised = inner if low == -math.inf else call("max", inner, low)
    return raised if high == math.inf else call("min", raised, high)


def leaky(slope: float, inner: str = "x") -> str:
    """inner where positive, slope · inner where negative."""
    return call("add", call("max", inner, 0.0), call("mul", call("min", inner, 0.0), slope))


def _walk(expr: Expr, leaf: Callable[[float], Any], x: Any, apply: Callable[[Function, list[Any]], Any]) -> Any:
    if isinstance(expr, tuple):
        args = [_walk(arg, leaf, x, apply) for arg in expr[1:]]
        return apply(FUNCTIONS[str(expr[0])], args)
    return x if isinstance(expr, str) else leaf(expr)


def evaluate(text: str, x: Array) -> Array:
    """The expression on an array, in the array's own precision (float32 or float64)."""
    with np.errstate(all="ignore"):
        result = _walk(parse(text), x.dtype.type, x, lambda function, args: function.numpy(*args))
    return np.broadcast_to(np.asarray(result, dtype=x.dtype), x.shape)


def evaluate_torch(text: str, x: Any) -> Any:
    """The expression on a torch tensor, differentiable."""
    import torch

    result = _walk(parse(text), x.new_tensor, x, lambda function, args: function.torch(torch, *args))
    return result.expand_as(x)


def silu(alpha: float = 1.0) -> str:
    return call("mul", "x", call("sigmoid", affine(alpha, 0.0)))


def gelu(approximate: str = "none") -> str:
    """GELU in the shape in which exporters spell it out, so that both spellings are one expression."""
    if approximate == "tanh":
        cubic = call("add", "x", call("mul", call("mul", call("mul", "x", "x"), "x"), 0.044715))
        inner = call("tanh", call("mul", cubic, math.sqrt(2 / math.pi)))
    else:
        inner = call("erf", call("mul", "x", math.sqrt(0.5)))
    return call("mul", call("mul", "x", call("add", inner, 1.0)), 0.5)


def hard_sigmoid(alpha: float = 1 / 6, beta: float = 0.5) -> str:
    return clip(0.0, 1.0, affine(alpha, beta))


def hard_swish() -> str:
    return call("mul", call("mul", "x", clip(0.0, 6.0, affine(1.0, 3.0))), 1 / 6)


def elu(alpha: float = 1.0, gamma: float = 1.0) -> str:
    negative = call("mul", call("sub", call("exp", call("min", "x", 0.0)), 1.0), alpha)
    return affine(gamma, 0.0, call("add", call("max", "x", 0.0), negative))


def celu(alpha: float = 1.0) -> str:
    negative = call("mul", call("sub", call("exp", call("div", call("min", "x", 0.0), alpha)), 1.0), alpha)
    return call("add", call("max", "x", 0.0), negative)


def mish() -> str:
    return call("mul", "x", call("tanh", call("softplus", "x")))


def softsign() -> str:
    return call("div", "x", call("add", call("abs", "x"), 1.0))
