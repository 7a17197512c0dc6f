"""Convolution and linear layers on AMX tiles equal the interpreter; code is made and searched on any machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from op_cases import Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.ir import Graph
from qcompile.pm.registry import host_features
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets.x86_64 import tile_weights
from targets.x86_64.backend import X86Amx
from targets.x86_64.target import X86_AMX

SQUARE, SAME = (3, 3), (1, 1, 1, 1)
CONVOLUTIONS = (
    # channels, outputs, kernel, stride, pad, dilation, input size, what it is about
    (3, 16, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), (21, 30)),  # merged taps of 3 bytes, 15 columns
    (16, 16, SQUARE, (1, 1), SAME, (1, 1), (9, 14)),  # merged taps of 16 bytes
    (96, 24, SQUARE, (1, 1), SAME, (1, 1), (6, 7)),  # merged taps that cross steps; one block is all of the image
    (24, 96, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (7, 7)),
    (130, 40, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (5, 15)),  # steps that read behind the pixel
    (64, 80, SQUARE, (1, 1), SAME, (1, 1), (14, 17)),  # tiles and groups that overlap
    (64, 64, SQUARE, (2, 2), (0, 0, 1, 1), (1, 1), (14, 14)),
    (32, 32, SQUARE, (1, 1), (2, 2, 2, 2), (2, 2), (8, 19)),
    (256, 32, SQUARE, (1, 1), SAME, (1, 1), (14, 14)),  # more steps than are unrolled
    (20, 5, (1, 5), (1, 3), (0, 2, 0, 2), (1, 1), (3, 53)),  # fewer channels than a group
    (64, 192, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (3, 56)),  # all channels of a pixel together
    (64, 64, SQUARE, (1, 1), SAME, (1, 1), (28, 28)),  # worth several threads
)


@cache
def conformance_graph() -> Graph:
    c = Cases()
    for channels, out, kernel, stride, pad, dilation, size in CONVOLUTIONS:
        x = c.image(channels, *size)
        w = c.weights(out, channels, *kernel)
        w[1] = -w[0]  # with the largest inputs: both ends of what a sum can be
        y = c.op("conv2d", x, consts={"w": w, "b": c.bias(out)}, stride=stride, pad=pad, dilation=dilation, pad_value=3)
        reach = channels * kernel[0] * kernel[1] * 5000.0
        c.show(c.requant(y, reach=reach, zp=7))
        if size[1] < 20:
            r = c.image(*c.b.type_of(y).sample)
            c.show(c.requant(y, r, reach=reach, zeros=(0, 11), zp=4))
    c.show(c.conv(c.image(32, 4, 5), 20, SQUARE, pad=SAME))
    for rows, features, out in ((16, 200, 72), (33, 64, 10), (3, 63, 40)):
        x = c.input(rows, features)
        held = c.op("table", x, consts={"t": np.arange(256)[::-1].astype(np.uint8).copy()}, dtype="u8")
        c.show(c.requant(c.linear(held, out), reach=features * 5000.0))
    return c.graph()


@cache
def narrow_graph() -> Graph:
    """The same layers with weights of 4 bits, both ends of their range included."""
    graph = conformance_graph()
    weights = {name for node in graph.nodes for role, name in node.consts if role == "w"}
    consts = {
        name: np.clip(array.astype(np.int32) >> 4, -8, 7).astype(np.int8) if name in weights else array
        for name, array in graph.consts.items()
    }
    assert {int(consts[name].min()) for name in weights} == {-8}
    return replace(graph, consts=consts)


def planned(channel_block: int, graph: Graph, variant: str) -> tuple[X86Amx, Program]:
    backend = X86Amx(replace(X86_AMX, channel_block=channel_block))
    program = plan_program(graph, backend.target)
    kernels = [replace(k, variant=backend.variants(k, program)[0]) for k in program.kernels]
    dense = [k for k in kernels if k.anchor.op in ("conv2d", "linear")]
    assert {k.variant for k in dense} == {variant}
    return backend, replace(program, kernels=tuple(kernels))


@pytest.mark.parametrize(
    ("channel_block", "network", "variant"),
    [(16, conformance_graph, "amx"), (1, conformance_graph, "amx"), (16, narrow_graph, "amx-4bit")],
)
def test_equals_interpreter(
    channel_block: int, network: Callable[[], Graph], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_weights, "LEAST_BYTES", 0)
    monkeypatch.setattr(tile_weights, "LEAST_PER_PIXEL", 0)
    if missing := set(X86_AMX.features) - host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    backend, program = planned(channel_block, network(), variant)
    graph = program.graph
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    backend.build(program, tmp_path)
    results = backend.load(tmp_path, graph).run([inputs[p.name] for p in graph.inputs])
    wrong = [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]
    assert wrong == []


def test_code_is_integer_only_without_the_processor(tmp_path: Path) -> None:
    backend, program = planned(16, conformance_graph(), "amx")
    kernels = tuple(k for k in program.kernels if k.variant == "amx")[:4]
    few = replace(program, kernels=kernels)
    backend.build(few, tmp_path)
    assert backend.float_operations(tmp_path, few) == []
    assert backend.float_operations(tmp_path) == []


def test_packed_weights_need_four_bits_and_enough_of_them() -> None:
    w = np.zeros((64, 64, 8, 8), dtype=np.int8)
    assert w.size == tile_weights.LEAST_BYTES
    w[0, 0, 0, :2] = -8, 7
    most = w.size // tile_weights.LEAST_PER_PIXEL
    assert tile_weights.fit_nibbles(w, most)
    assert not tile_weights.fit_nibbles(w, most + 1)
    assert not tile_weights.fit_nibbles(w[1:], most // 2)
    for wider in (-9, 8):
        w[3, 2, 1, 0] = wider
        assert not tile_weights.fit_nibbles(w, most)
