"""Small float graphs, and running one canonical pass on them with every promise checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcompile.exec import float_exec
from qcompile.ir import FLOAT, Graph, GraphBuilder, TensorType
from qcompile.ir.text import to_text
from qcompile.pm.base import Close, PassContext, Report
from qcompile.pm.manager import PassManager
from qcompile.pm.registry import find_pass
from targets.reference.target import REFERENCE


class Net:
    """A graph under construction: net.conv2d("c", "x", w=…, pad=…)."""

    def __init__(self, *sample: int) -> None:
        self.builder = GraphBuilder("net", FLOAT)
        self.builder.input("x", TensorType((-1, *(sample or (4, 8, 8))), "f32"))

    def __getattr__(self, op: str) -> Callable[..., Net]:
        def add(name: str, *inputs: str, **given: Any) -> Net:
            consts = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
            attrs = {key: value for key, value in given.items() if key not in consts}
            self.builder.add(op, inputs, name=name, consts=consts, attrs=attrs, origin=[name])
            return self

        return add

    def out(self, **outputs: str) -> Graph:
        for name, value in outputs.items():
            self.builder.output(name, value)
        return self.builder.build()


def array(*shape: int, seed: int = 0, low: float = -1.0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(np.float32)


def apply(name: str, graph: Graph) -> tuple[Graph, Report]:
    """Run one pass; what it promises of the function is checked on random samples."""
    pass_ = find_pass(name)()
    result = PassManager([pass_]).run(graph, PassContext(REFERENCE))
    x = {port.name: array(3, *port.type.sample, seed=1) for port in graph.inputs}
    before, after = float_exec.run(graph, x), float_exec.run(result.graph, x)
    assert list(before) == list(after)
    rtol = pass_.preserves.rtol if isinstance(pass_.preserves, Close) else 0.0
    for key, y in before.items():
        np.testing.assert_allclose(after[key], y, rtol=0, atol=rtol * float(np.abs(y).max()))
    return result.graph, result.reports[name]


def lines(graph: Graph) -> list[str]:
    """The nodes in text form without types and origins; those of the tail follow behind "tail"."""
    found = []
    for line in to_text(graph).splitlines():
        if line.startswith("%"):
            found.append(line.split(" : ")[0])
        elif line.startswith(("out ", "tail")):
            found.append(line.split("  #")[0])
    return found
