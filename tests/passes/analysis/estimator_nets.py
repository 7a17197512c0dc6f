"""A small float network, its samples and the ways analyses are run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from passes.analysis.calibrate_ranges import CalibrateRanges
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import PassContext
from qcompile.pm.work import WorkCache
from qcompile.target.model import Target

TARGET = Target("none", "", "", weight_bits=(3, 4, 8), act_bits=(4, 8))
N = 20


def conv_net(classes: bool = True) -> Graph:
    """conv → relu → (conv + shortcut) → relu → pool → linear; the shortcut is read by a layer and an addition."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Array:
        return (rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 2, 6, 6), "f32"))
    bias = rng.normal(size=4).astype(np.float32)
    pad = {"pad": (1, 1, 1, 1)}
    h = b.add("conv2d", [x], name="c1", consts={"w": draw(4, 2, 3, 3), "b": bias}, attrs=pad)
    h = b.add("clip", [h], name="r1", attrs={"lo": 0.0})
    s = b.add("conv2d", [h], name="c2", consts={"w": draw(4, 4, 3, 3)}, attrs=pad)
    s = b.add("clip", [b.add("add", [s, h], name="sum")], name="r2", attrs={"lo": 0.0})
    m = b.add("reduce_mean", [s], name="mean", attrs={"axes": (2, 3), "keepdims": 0})
    b.output("y", b.add("linear", [m], name="fc", consts={"w": draw(3 if classes else 1, 4)}))
    return b.build()


DATA = np.random.default_rng(5).normal(size=(N, 2, 6, 6)).astype(np.float32)


def stream() -> Iterator[dict[str, Array]]:
    """The samples in uneven batches, as files give them."""
    for i in range(0, N, 7):
        yield {"x": DATA[i : i + 7], "labels": (np.arange(N) % 3)[i : i + 7]}


def context(folder: Path | None = None, **more: object) -> PassContext:
    work = None if folder is None else WorkCache(folder)
    return PassContext(TARGET, calibration=stream, holdout=stream, labels=True, work=work, **more)  # type: ignore[arg-type]


def calibrated(classes: bool = True) -> Graph:
    return CalibrateRanges().run(conv_net(classes), context()).graph
