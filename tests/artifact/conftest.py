"""A tiny integer graph with 4-bit weights, a per-channel requant and a host output function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.artifact import Budgets, Calibration, Manifest, Model, Record, write_artifact
from qcompile.ir import BATCH, FLOAT, INT, Graph, GraphBuilder, Grid, TensorType

Write = Callable[..., Manifest]


def make_graph() -> Graph:
    rng = np.random.default_rng(7)
    b = GraphBuilder("tiny", INT)
    x = b.input("input", TensorType((BATCH, 3, 4, 4), "u8"), Grid(0.02, 128, "u8"))
    w = rng.integers(-7, 8, (5, 3, 3, 3)).astype(np.int8)
    bias = rng.integers(-500, 500, 5).astype(np.int32)
    acc = b.add("conv2d", [x], name="conv:acc", consts={"w": w, "b": bias}, attrs={"pad_value": 128, "weight_bits": 4})
    m0 = rng.integers(1 << 30, 1 << 31, (5, 1, 1)).astype(np.int32)
    y = b.add(
        "requant", [acc], name="conv", consts={"m0": m0, "e": np.full((5, 1, 1), 7, np.int32)},
        attrs={"zp": 100, "lo": 0, "hi": 255, "dtype": "u8"},
    )  # fmt: skip
    flat = b.add("reshape", [y], name="flat", attrs={"shape": (BATCH, 20)})
    b.output("scores", flat, Grid(0.05, 100, "u8"))
    t = GraphBuilder("tail", FLOAT)
    s = t.input("scores", TensorType((BATCH, 20), "f32"))
    scaled = t.add(
        "affine", [s], name="scaled",
        consts={"scale": np.linspace(0.5, 1.5, 20).astype(np.float32), "shift": np.zeros(1, np.float32)},
    )  # fmt: skip
    t.output("scores", t.add("softmax", [scaled], name="softmax", attrs={"axis": 1}))
    return b.build(tail=t.build())


@pytest.fixture(scope="session")
def graph() -> Graph:
    return make_graph()


@pytest.fixture(scope="session")
def record() -> Record:
    return Record(
        versions={"qcompile": "0.1.0", "numpy": "2"},
        model=Model("tiny.onnx", "00" * 32),
        target="reference",
        budgets=Budgets(latency_seconds=5e-3, memory_bytes=1 << 20, pins={"fc": "w8a8"}),
        solver={"status": "optimal", "objective": 0.25, "bound": 0.25, "gap": 0.0},
        predicted_seconds=0.003,
        arena_bytes=4096,
        kernels={"conv": "interpreter"},
        calibration=Calibration("calib.npz", 256, "11" * 32),
        threads=3,
        warnings=("a sentence",),
    )


@pytest.fixture
def write(graph: Graph, record: Record) -> Write:
    """Writes the tiny artifact; keyword arguments replace parts of it."""

    def build(folder: Path) -> Mapping[str, str]:
        (folder / "library.so").write_bytes(b"\x7fELF code")
        (folder / "kernels.json").write_text("{}\n")
        return {"compiler": "none 1.0", "entry": "interpreter"}

    def run(directory: Path, **changes: Any) -> Manifest:
        golden = np.random.default_rng(1).integers(0, 256, (4, 3, 4, 4)).astype(np.uint8)
        given: dict[str, Any] = {
            "graph": graph, "record": record, "plan": {"bits": {"conv": (4, 8)}},
            "golden_inputs": {"input": golden}, "build": build,
        }  # fmt: skip
        return write_artifact(directory, **(given | changes))

    return run
