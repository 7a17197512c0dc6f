"""torch.fx → float graph: symbolic traces."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from qcompile.capture.torch_walk import Bound, Param, walk
from qcompile.errors import CaptureError
from qcompile.ir import Graph

_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


class _Through(fx.Tracer):
    """Traces through every module, so that a call of nn.Conv2d becomes conv2d of its parameters.

    Only batch normalisations stay calls: their code checks the rank of its input, which a trace does not
    know.
    """

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _NORMS)


def capture_fx(
    module: torch.nn.Module,
    example: torch.Tensor | Sequence[torch.Tensor],
    name: str | None = None,
) -> Graph:
    """Capture a torch.fx GraphModule, or a module that torch.fx can trace.

    Args:
        module: traced in evaluation mode; its mode is restored.
        example: one tensor for each input; only shapes matter.

    Raises:
        CaptureError: torch.fx cannot trace it.
        UnsupportedOpError: lists every operator that cannot be captured.
    """
    examples = [example] if isinstance(example, torch.Tensor) else list(example)
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        graph = _Through().trace(module)
    except Exception as error:  # whatever the module's own code raises on a proxy
        raise CaptureError(
            f"torch.fx cannot trace {type(module).__name__}: {error}",
            hint="pass the module itself with an example input, so that torch.export reads it",
        ) from None
    finally:
        for part in training:
            part.training = True
    ports = [node for node in graph.nodes if node.op == "placeholder"]
    if len(ports) != len(examples):
        raise CaptureError(f"the module takes {len(ports)} inputs, {len(examples)} examples are given")
    placeholders: dict[str, tuple[int, ...] | Param] = {
        port.name: (1, *tensor.shape[1:]) for port, tensor in zip(ports, examples, strict=True)
    }

    def bind(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        if node.op == "call_module":
            return _bind_norm(module.get_submodule(str(node.target)), str(node.target), args)
        return _bind(node, args, kwargs)

    return walk(graph, name or type(module).__name__, placeholders, lambda t: _attribute(module, t), bind)


def _bind_norm(norm: torch.nn.Module, path: str, args: tuple[Any, ...]) -> Bound:
    named = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    roles = ("weight", "bias", "running_mean", "running_var")
    params = {role: Param(named[role], f"{path}.{role}") if role in named else None for role in roles}
    return "batch_norm", args, {**params, "eps": getattr(norm, "eps", 1e-5)}


def _attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    owner, _, leaf = path.rpartition(".")
    found = getattr(module.get_submodule(owner), leaf)
    if not isinstance(found, torch.Tensor):
        raise CaptureError(f"{path!r} is no tensor")
    return found


def _bind(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
    """Arguments by name where the function's signature tells it: its order may differ from ATen's."""
    if node.op == "call_method":
        return str(node.target), args, kwargs
    target: Any = node.target
    name = str(getattr(target, "__name__", target))
    if not inspect.isfunction(target) or not str(getattr(target, "__module__", "")).startswith("torch"):
        return name, args, kwargs
    try:
        bound = inspect.signature(target).bind(*args, **kwargs)
    except TypeError:
        return name, args, kwargs
    named = dict(bound.arguments)
    extra = tuple(named.pop("args", ()))
    return name, extra, {**named.pop("kwargs", {}), **named}
