"""Memory plans: nothing that is alive together overlaps, and images have the halo their readers need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from passes.lower.copy_at_boundary import CopyAtBoundary
from passes.lower.form_kernels import form_kernels
from passes.lower.plan_memory import lifetimes, lower_bound, place, plan_program
from qcompile.ir import BATCH, INT, Graph, GraphBuilder, Grid, TensorType
from qcompile.pm.base import PassContext
from qcompile.target.program import Layout
from targets.reference.target import REFERENCE
from targets.x86_64.target import X86_VNNI

GRID = Grid(0.1, 7, "u8")
LIVES = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=25)


@given(LIVES)
def test_buffers_alive_together_do_not_overlap(cases: list[tuple[int, int, int]]) -> None:
    layouts = {f"v{i}": Layout((size,), "u8") for i, (size, _, _) in enumerate(cases)}
    lives = {f"v{i}": (start, start + length) for i, (_, start, length) in enumerate(cases)}
    offsets, total = place(layouts, lives, 64)
    for one, (a, b) in lives.items():
        assert offsets[one] % 64 == 0
        assert offsets[one] + layouts[one].bytes <= total
        for other, (c, d) in lives.items():
            if one < other and a <= d and c <= b:
                first, second = sorted((one, other), key=lambda v: offsets[v])
                assert offsets[first] + layouts[first].bytes <= offsets[second]


def residual() -> Graph:
    """conv → requant → (conv + skip) → requant, on 8×8 images."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder("residual", INT)
    value = builder.input("x", TensorType((BATCH, 3, 8, 8), "u8"), GRID)

    def conv(source: str, channels: int, name: str) -> str:
        w = rng.integers(-9, 9, (16, channels, 3, 3)).astype(np.int8)
        attrs = {"pad": (1, 1, 1, 1), "pad_value": 7}
        return builder.add("conv2d", [source], name=name, consts={"w": w, "b": np.zeros(16, np.int32)}, attrs=attrs)

    def requant(name: str, *terms: str) -> str:
        consts = {f"m{i}": np.array([[[1 << 30]]], np.int32) for i in range(len(terms))}
        attrs = {"zeros": (0,) * len(terms), "zp": 7, "lo": 0, "hi": 255, "dtype": "u8"}
        return builder.add(
            "requant", terms, name=name, consts={**consts, "e": np.array([[[38]]], np.int32)}, attrs=attrs
        )

    first = requant("first", conv(value, 3, "conv1"))
    second = requant("second", conv(first, 16, "conv2"), first)
    builder.output("y", second, GRID)
    return builder.build()


def test_accumulators_are_fused_and_never_stored() -> None:
    kernels = form_kernels(residual())
    assert [[node.name for node in kernel.nodes] for kernel in kernels] == [["conv1", "first"], ["conv2", "second"]]
    assert kernels[1].inputs == ("first",)


def test_layouts() -> None:
    graph = CopyAtBoundary().run(residual(), PassContext(X86_VNNI)).graph
    program = plan_program(graph, X86_VNNI)
    layouts = {value: buffer.layout for value, buffer in program.buffers.items()}
    assert (layouts["x"].channels_last, program.buffers["x"].place) == (False, "input")
    assert (layouts["x:in"].halo, layouts["x:in"].fill) == ((1, 1, 1, 1), 7)
    assert (layouts["first"].halo, layouts["first"].pixel) == ((1, 1, 1, 1), 16)
    assert layouts["second"].halo == (0, 0, 0, 0)
    assert (program.buffers["second:out"].place, layouts["second:out"].channels_last) == ("output", False)
    assert program.arena_bytes >= lower_bound(program)


def test_lifetimes_end_at_the_last_reader() -> None:
    assert lifetimes(form_kernels(residual())) == {"first": (0, 1), "second": (1, 1)}


def test_the_reference_target_pads_nothing() -> None:
    program = plan_program(residual(), REFERENCE)
    assert program.buffers["first"].layout.pixel == 16
