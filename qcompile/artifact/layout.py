"""Names of the files of an artifact, and how its golden samples are stored."""

from __future__ import annotations

from collections.abc import Mapping

from qcompile.ir import Array

MANIFEST = "manifest.json"
GRAPH = "graph.qir"
PARAMETERS = "parameters.bin"
PARAMETER_INDEX = "parameters.json"
PLAN = "plan.json"
GOLDENS = "goldens.npz"
LIBRARY = "lib"
MEASUREMENTS = "measurements.json"

_INPUT, _OUTPUT = "input:", "output:"


def golden_arrays(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Golden inputs and outputs in one namespace."""
    named = {f"{_INPUT}{name}": array for name, array in inputs.items()}
    return named | {f"{_OUTPUT}{name}": array for name, array in outputs.items()}


def split_goldens(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inverse of `golden_arrays`."""
    inputs = {name.removeprefix(_INPUT): a for name, a in arrays.items() if name.startswith(_INPUT)}
    outputs = {name.removeprefix(_OUTPUT): a for name, a in arrays.items() if name.startswith(_OUTPUT)}
    return inputs, outputs
