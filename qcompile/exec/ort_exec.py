"""onnxruntime as an oracle: what the source model computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from qcompile.errors import CaptureError
from qcompile.ir import Array


class Serializable(Protocol):
    """An onnx.ModelProto, as far as it is needed here."""

    def SerializeToString(self) -> bytes:  # noqa: N802  (protobuf's name)
        """The bytes of the file."""


class OrtModel:
    """A session on one thread.

    Args:
        model: a model in memory, its bytes, or the path of a file without external data
            (onnxruntime would follow hard links out of the folder;
            `qcompile.capture.onnx_load.load_model` reads such models safely).
        optimize: whether onnxruntime may rewrite the graph.
    """

    def __init__(
        self,
        model: Serializable | bytes | str | os.PathLike[str],
        *,
        optimize: bool = True,
        threads: int = 1,
    ) -> None:
        if isinstance(model, bytes):
            data = model
        else:
            data = Path(model).read_bytes() if isinstance(model, str | os.PathLike) else model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            # A session on bytes has no folder: it refuses external data by itself.
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common public base
            raise CaptureError(f"onnxruntime cannot load the model: {_first_line(error)}") from None
        self.inputs = tuple(port.name for port in self._session.get_inputs())
        self.outputs = tuple(port.name for port in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        feeds = {name: np.asarray(inputs[name]) for name in self.inputs}
        try:
            results = self._session.run(list(self.outputs), feeds)
        except Exception as error:
            raise CaptureError(f"onnxruntime cannot run the model: {_first_line(error)}") from None
        return {name: np.asarray(value) for name, value in zip(self.outputs, results, strict=True)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
