"""A node as the handlers of ONNX operators see it, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from qcompile.capture.emit import Const, Emitter, Unsupported, Value
from qcompile.ir import Array


@dataclass(frozen=True)
class OnnxNode:
    """One node with its inputs resolved."""

    proto: onnx.NodeProto
    inputs: Sequence[Value | Const | None]
    emit: Emitter
    opset: int

    @property
    def attrs(self) -> Mapping[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; text comes as str."""
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def value(self, i: int = 0) -> Value:
        """An input that is computed from the network's input."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(found, Value):
            raise Unsupported(f"input {i} is a constant" if found else f"input {i} is missing")
        return found

    def const(self, i: int) -> Array:
        """An input that must be constant."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if isinstance(found, Value):
            raise Unsupported(f"input {i} is computed from the network's input; it must be a constant")
        if found is None:
            raise Unsupported(f"input {i} is missing")
        return found.array

    def const_or(self, i: int) -> Array | None:
        return self.const(i) if self.has(i) else None

    def ints(self, i: int) -> list[int]:
        """A constant input as a list of integers."""
        return [int(v) for v in np.asarray(self.const(i)).reshape(-1)]

    def scalar(self, i: int, default: float) -> float:
        """A constant input of one element, or the default where it is absent."""
        array = self.const_or(i)
        if array is None:
            return default
        if array.size != 1:
            raise Unsupported(f"input {i} must be one number, not of shape {array.shape}")
        return float(array.reshape(-1)[0])

    def operand(self, i: int) -> Value | Array:
        found = self.inputs[i]
        if found is None:
            raise Unsupported(f"input {i} is missing")
        return found.array if isinstance(found, Const) else found


Handler = Callable[[OnnxNode], "Value | list[Value]"]
HANDLERS: dict[str, Handler] = {}
"""Operator → handler; filled by the modules imported at the end."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


from qcompile.capture import onnx_layers, onnx_movement  # noqa: E402, F401  (they fill the table)
