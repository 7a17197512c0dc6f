"""The expression language."""

import math

import numpy as np
import pytest
import torch

from qcompile.errors import GraphError
from qcompile.exec import unary

X = np.linspace(-6, 6, 101).astype(np.float32)


def test_parse() -> None:
    assert unary.parse("(mul x (sigmoid x))") == ("mul", "x", ("sigmoid", "x"))
    assert unary.parse(" ( add x  -1.5e-3 ) ") == ("add", "x", -1.5e-3)
    assert unary.parse("x") == "x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        ")",
        "x x",
        "(mul x)",
        "(mul x x x)",
        "(nothing x)",
        "mul",
        "(mul mul x)",
        "y",
        "()",
        "(x x)",
        "(add x 1",
        "__import__('os')",
        "(" * 200 + "x" + ")" * 200,
    ],
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(GraphError):
        unary.parse(text)


def test_compose_replaces_only_the_variable() -> None:
    assert unary.compose("(max (exp x) x)", "(mul x 2.0)") == "(max (exp (mul x 2.0)) (mul x 2.0))"
    assert unary.compose("x", "(exp x)") == "(exp x)"


def test_neutral_parts_are_left_out() -> None:
    assert unary.affine(1, 0) == "x"
    assert unary.affine(2, 0) == "(mul x 2.0)"
    assert unary.affine(1, 0.1) == "(add x 0.1)"
    assert unary.clip(-math.inf, math.inf) == "x"
    assert unary.clip(0, 6) == "(min (max x 0.0) 6.0)"


NAMED = {
    "silu": (unary.silu(), torch.nn.functional.silu),
    "gelu": (unary.gelu(), torch.nn.functional.gelu),
    "gelu tanh": (unary.gelu("tanh"), lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    "hard sigmoid": (unary.hard_sigmoid(), torch.nn.functional.hardsigmoid),
    "hard swish": (unary.hard_swish(), torch.nn.functional.hardswish),
    "elu": (unary.elu(0.7), lambda x: torch.nn.functional.elu(x, 0.7)),
    "celu": (unary.celu(0.7), lambda x: torch.nn.functional.celu(x, 0.7)),
    "mish": (unary.mish(), torch.nn.functional.mish),
    "softsign": (unary.softsign(), torch.nn.functional.softsign),
    "leaky": (unary.leaky(0.1), lambda x: torch.nn.functional.leaky_relu(x, 0.1)),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_functions(name: str) -> None:
    text, expected = NAMED[name]
    y = expected(torch.from_numpy(X.copy())).numpy()
    np.testing.assert_allclose(unary.evaluate(text, X), y, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(unary.evaluate_torch(text, torch.from_numpy(X.copy())).numpy(), y, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", unary.FUNCTIONS)
def test_numpy_and_torch_agree(name: str) -> None:
    x = np.linspace(0.1, 4, 50)
    args = ["x", "1.5"][: unary.FUNCTIONS[name].arity]
    text = f"({name} {' '.join(args)})"
    expected = unary.evaluate(text, x)
    assert expected.dtype == np.float64
    np.testing.assert_allclose(unary.evaluate_torch(text, torch.from_numpy(x)).numpy(), expected, rtol=1e-9)


def test_no_overflow_in_the_stable_functions() -> None:
    x = np.array([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=np.float32)
    np.testing.assert_allclose(unary.evaluate("(sigmoid x)", x), [0, 0, 0.5, 1, 1], atol=1e-30)
    np.testing.assert_allclose(unary.evaluate("(softplus x)", x), [0, 0, math.log(2), 100, 1e4], rtol=1e-6, atol=1e-30)


def test_a_constant_expression_has_the_shape_of_its_input() -> None:
    assert unary.evaluate("1.5", X).shape == X.shape
    assert unary.evaluate_torch("1.5", torch.zeros(2, 3)).shape == (2, 3)
