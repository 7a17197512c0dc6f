"""torch.export → float graph: live modules and ExportedProgram objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from qcompile.capture.torch_walk import Bound, Param, walk
from qcompile.errors import CaptureError
from qcompile.ir import Graph


def capture_module(
    module: torch.nn.Module, example: torch.Tensor | Sequence[torch.Tensor], name: str | None = None
) -> Graph:
    """Capture a live module.

    Args:
        module: exported in evaluation mode; its mode is restored.
        example: one input tensor, or one for each argument; only shapes matter, dimension 0 is the batch.
        name: the graph's name; default: the class's.

    Raises:
        CaptureError: torch.export cannot follow the module's code.
        UnsupportedOpError: lists every operator that cannot be captured.
    """
    inputs = tuple(t.detach()[:1] for t in ([example] if isinstance(example, torch.Tensor) else example))
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs)
    except Exception as error:  # torch.export's failures have no common base
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CaptureError(
            f"torch.export cannot follow {type(module).__name__}: {first}",
            hint="control flow must not depend on values; or export the model to ONNX and pass the file",
        ) from None
    finally:
        for part in training:
            part.training = True
    return capture_program(program, name or type(module).__name__)


def capture_program(program: ExportedProgram, name: str | None = None) -> Graph:
    """Capture an ExportedProgram object (of a batch of 1 or a symbolic batch)."""
    tensors: dict[str, Any] = {**program.state_dict, **program.constants}
    buffers = dict(program.named_buffers())
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    placeholders: dict[str, tuple[int, ...] | Param] = {}
    for spec in program.graph_signature.input_specs:
        key = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            placeholders[key] = _shape(by_name[key])
        elif spec.target is not None:
            tensor = tensors.get(spec.target, buffers.get(spec.target))
            if not isinstance(tensor, torch.Tensor):
                raise CaptureError(f"the exported program reads {spec.target!r}, which is no tensor")
            placeholders[key] = Param(tensor, spec.target)
    return walk(
        program.graph,
        name or "network",
        placeholders,
        lambda target: (
            program.graph_module.get_parameter(target)
            if target in dict(program.graph_module.named_parameters())
            else getattr(program.graph_module, target)
        ),
        _bind,
    )


def _bind(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1], args, kwargs
    return getattr(target, "__name__", str(target)), args, kwargs


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        held = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise CaptureError(f"input {node.name!r} holds {held}; inputs must be float32 tensors")
    batch, *rest = value.shape
    if isinstance(batch, int) and batch != 1:
        raise CaptureError(
            f"the program was exported for a batch of {batch}",
            hint="export it for a batch of 1 or a symbolic batch",
        )
    if any(not isinstance(size, int) for size in rest):
        raise CaptureError(f"input {node.name!r} has dynamic dimensions behind the batch; export it with fixed ones")
    return (1, *(int(size) for size in rest))
