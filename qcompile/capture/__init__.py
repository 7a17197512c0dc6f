"""Capture: ONNX files, torch modules, exported programs and fx graphs become float graphs.

Framework packages are imported only by the capture that needs them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.errors import CaptureError
from qcompile.ir import Graph

_PICKLES = (".pt", ".pt2", ".pth", ".pkl", ".ckpt", ".bin")


def capture(
    model: Any,
    *,
    example: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
) -> Graph:
    """Capture a network into a float graph.

    Args:
        model: path of an ONNX file, an onnx.ModelProto, a torch module, a torch.fx GraphModule or an
        ExportedProgram. example: for a module: an input tensor, or a sequence of one for each argument; only
        shapes matter. shapes: for ONNX: shapes by input name where the model leaves dimensions open.
        name: the graph's name; default: that of the file or class.

    Raises:
        CaptureError: what `model` is cannot be read; UnsupportedOpError lists operators that are not
        supported.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix in _PICKLES:
            raise CaptureError(
                f"{path.name} is not read: such files hold pickles or code, which run when they are loaded",
                hint="build the module, load weights with weights_only=True and pass it; or export to ONNX",
            )
        from qcompile.capture.onnx import capture_onnx

        return capture_onnx(path, shapes=shapes, name=name)
    kinds = {f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(model).__mro__}
    if "onnx.ModelProto" in kinds or type(model).__name__ == "ModelProto":
        from qcompile.capture.onnx import capture_onnx

        return capture_onnx(model, shapes=shapes, name=name)
    if "torch.ExportedProgram" in kinds:
        from qcompile.capture.torch_export import capture_program

        return capture_program(model, name)
    if "torch.Module" not in kinds:
        raise CaptureError(
            f"cannot capture a {type(model).__name__}",
            hint="pass an ONNX file, an onnx.ModelProto, a torch module, a GraphModule or an ExportedProgram",
        )
    if example is None:
        raise CaptureError(
            "a torch module needs an example input", hint="capture(module, example=torch.zeros(1, 3, 32, 32))"
        )
    if "torch.GraphModule" in kinds:
        from qcompile.capture.torch_fx import capture_fx

        return capture_fx(model, example, name)
    from qcompile.capture.torch_export import capture_module

    return capture_module(model, example, name)


__all__ = ["capture"]
