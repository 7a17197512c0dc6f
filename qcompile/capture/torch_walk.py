"""The walk over a torch.fx graph, for exported programs and for symbolic traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qcompile.capture.emit import Const, Emitter, Unsupported, Value, clean, module_path
from qcompile.capture.report import Problem, unsupported
from qcompile.capture.torch_ops import TORCH_OPS
from qcompile.errors import CaptureError, GraphError
from qcompile.ir import Graph, verify

# Checks that export leaves in the graph; they compute nothing.
_IGNORED = ("_assert", "sym_constrain", "_guards", "_set_grad_enabled", "_enter_autocast", "_exit_autocast")


Bound = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A call: the operator's name, positional arguments, arguments by name."""
Bind = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Bound]


@dataclass(frozen=True, slots=True)
class Param:
    """A tensor that does not depend on the input, and the path of the parameter it comes from."""

    tensor: torch.Tensor
    path: str


class _Broken:
    """The result of a node that cannot be captured."""


_BROKEN = _Broken()


SINGLE_INPUT = "input"


def supported_ops() -> tuple[str, ...]:
    """Names of the torch functions that can be captured."""
    return tuple(sorted(name for name in TORCH_OPS if not name.startswith("_") and not name.endswith("_")))


def walk(
    graph: fx.Graph,
    name: str,
    placeholders: Mapping[str, tuple[int, ...] | Param],
    attribute: Callable[[str], torch.Tensor],
    bind: Bind,
) -> Graph:
    """Capture an fx graph.

    Args:
        placeholders: placeholder name → the input's shape with a batch of 1, or the parameter it stands for.
            A single input is called `input`, as ONNX exports of one-input networks commonly are; several keep the
            names of the arguments.
        attribute: the tensor a `get_attr` node names.
        bind: the operator's name and arguments of a call node.

    Raises:
        CaptureError: non-finite weights or outputs of the wrong kind.
        UnsupportedOpError: lists every node that cannot be captured.
    """
    emit = Emitter(name)
    found: dict[fx.Node, Any] = {}
    problems: list[Problem] = []
    outputs: list[Any] = []
    single = sum(not isinstance(given, Param) for given in placeholders.values()) == 1
    for node in graph.nodes:
        if node.op == "placeholder":
            given = placeholders[node.name]
            port = SINGLE_INPUT if single else node.name
            found[node] = given if isinstance(given, Param) else emit.input(port, given)
        elif node.op == "get_attr":
            found[node] = Param(attribute(str(node.target)), str(node.target))
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], lambda n: found[n])
            outputs = _listed(result)
        else:
            found[node] = _call(emit, node, found, problems, bind)
    if problems:
        raise unsupported(problems, supported_ops())
    for i, (port, value) in enumerate(outputs):
        if not isinstance(value, Value) or not value.shape or value.shape[0] != 1:
            raise CaptureError(f"output {i} of the module is no tensor computed from the input with the batch first")
        emit.builder.output(clean(port), value.name)
    if not outputs:
        raise CaptureError("the module returns nothing")
    captured = emit.builder.build()
    verify(captured)
    return captured


def _listed(result: Any) -> list[tuple[str, Any]]:
    """Outputs with their names: of a tensor, a sequence, or a dictionary of tensors."""
    if isinstance(result, Mapping):
        return [(str(key), value) for key, value in result.items()]
    items = list(result) if isinstance(result, Sequence) else [result]
    return [("output" if len(items) == 1 else f"output.{i}", value) for i, value in enumerate(items)]


def _call(
    emit: Emitter,
    node: fx.Node,
    found: Mapping[fx.Node, Any],
    problems: list[Problem],
    bind: Bind,
) -> Any:
    if any(isinstance(found[source], _Broken) for source in node.all_input_nodes):
        op = bind(node, (), {})[0]
        if op not in TORCH_OPS and not op.startswith(_IGNORED):
            problems.append(Problem(node.name, op, "the operator is not supported"))
        return _BROKEN
    args = fx.node.map_arg(node.args, lambda n: found[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: found[n])
    leaves = [found[source] for source in node.all_input_nodes]
    if not any(_depends(leaf) for leaf in leaves):
        return _constant(node, args, kwargs, leaves)
    op, args, kwargs = bind(node, args, kwargs)
    if op.startswith(_IGNORED):
        return None
    if op not in TORCH_OPS:
        problems.append(Problem(node.name, op, "the operator is not supported"))
        return _BROKEN
    weights: list[str] = []
    _mapped((args, kwargs), lambda leaf: weights.append(leaf.path) if isinstance(leaf, Param) else None)
    path = next((p for p in map(module_path, weights) if p), None)
    emit.at(path or node.name, path or node.name)
    try:
        return TORCH_OPS[op](emit, *_plain(args), **_plain(kwargs))
    except (Unsupported, GraphError) as refusal:
        problems.append(Problem(node.name, op, refusal.message if isinstance(refusal, GraphError) else str(refusal)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        problems.append(Problem(node.name, op, f"in this form it is not supported: {error}"))
    return _BROKEN


def _depends(leaf: Any) -> bool:
    if isinstance(leaf, list | tuple):
        return any(_depends(part) for part in leaf)
    return isinstance(leaf, Value)


def _constant(node: fx.Node, args: Any, kwargs: Any, leaves: Sequence[Any]) -> Any:
    """Evaluate a node that does not depend on the input."""
    label = next((leaf.path for leaf in leaves if isinstance(leaf, Param)), node.name)
    real_args = _mapped(args, lambda leaf: leaf.tensor if isinstance(leaf, Param) else leaf)
    real_kwargs = _mapped(kwargs, lambda leaf: leaf.tensor if isinstance(leaf, Param) else leaf)
    with torch.no_grad():
        if node.op == "call_method":
            result = getattr(real_args[0], str(node.target))(*real_args[1:], **real_kwargs)
        else:
            target: Any = node.target
            result = target(*real_args, **real_kwargs)
    return _mapped(result, lambda leaf: Param(leaf, label) if isinstance(leaf, torch.Tensor) else leaf)


def _plain(arguments: Any) -> Any:
    """Arguments with parameters as constants."""
    return _mapped(arguments, lambda leaf: _const(leaf) if isinstance(leaf, Param) else leaf)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_mapped(part, change) for part in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, list | tuple):
        parts = [_mapped(part, change) for part in tree]
        return parts if isinstance(tree, list) else tuple(parts)
    return change(tree)


def _const(param: Param) -> Const:
    tensor = param.tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CaptureError(f"tensor {param.path!r} holds NaN or infinity")
    return Const(tensor.numpy(), param.path)
