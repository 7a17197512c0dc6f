"""Pipelines as text: exact round trip, typed options, and the text of refusals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.plan.solve_bits import SolveBits
from qcompile.errors import UsageError
from qcompile.pm.base import ON_FLOAT, Pass
from qcompile.pm.spec import format_pass, format_pipeline, parse_pipeline
from qcompile.units import parse_latency


@dataclass(frozen=True)
class Plain(Pass):
    name: ClassVar[str] = "plain"
    levels = ON_FLOAT


@dataclass(frozen=True)
class Rich(Pass):
    name: ClassVar[str] = "rich"
    levels = ON_FLOAT

    count: int = 3
    rate: float = 0.5
    on: bool = True
    text: str = "some"
    method: Literal["mse", "minmax"] = "mse"
    maybe: float | None = None
    label: str | None = None
    bits: tuple[int, ...] = (4, 8)
    pair: tuple[str, float] = ("a", 1.0)
    path: Path = Path("x")
    time: float | None = field(default=None, metadata={"parse": parse_latency})


@dataclass(frozen=True)
class Needy(Pass):
    name: ClassVar[str] = "needy"
    levels = ON_FLOAT
    what: str


CLASSES: dict[str, type[Pass]] = {cls.name: cls for cls in (Plain, Rich, Needy)}


def parse(text: str) -> tuple[Pass, ...]:
    return parse_pipeline(text, CLASSES.__getitem__)


def test_options_are_read_by_their_type() -> None:
    text = 'plain, rich{count=7, rate=1e-3, on=false, text="a, {b}", method=minmax, maybe=2, '
    text += "bits=(2, 4, 8),time=5ms}"
    assert parse(text) == (
        Plain(),
        Rich(7, 1e-3, False, "a, {b}", "minmax", 2.0, None, (2, 4, 8), time=0.005),
    )
    assert parse("rich{maybe=None,bits=(),time=0.25}") == (Rich(bits=(), time=0.25),)


def test_shipped_passes_round_trip() -> None:
    text = "uniform-bits{w=4},solve-bits{latency=0.005,gap=0.01},plan-from-file{path=plans/a b.json}"
    assert format_pipeline(parse_pipeline(text)) == text
    assert parse_pipeline("solve-bits{latency=5ms,memory=1MiB}") == (SolveBits(latency=0.005, memory=1 << 20),)


def test_defaults_are_left_out_and_agree_with_the_pass() -> None:
    assert format_pass(Rich()) == "rich" == Rich().spec()
    for pass_ in (Rich(count=4, rate=0.1, on=False), SolveBits(latency=0.005, gap=0.5)):
        assert format_pass(pass_) == pass_.spec()


words = st.text(max_size=8)
floats = st.floats(allow_nan=False)
riches = st.builds(
    Rich, st.integers(), floats, st.booleans(), words, st.sampled_from(["mse", "minmax"]), st.none() | floats,
    st.none() | words, st.lists(st.integers(), max_size=3).map(tuple), st.tuples(words, floats),
    words.filter(lambda t: "\0" not in t).map(Path), st.none() | floats,
)  # fmt: skip


@given(st.lists(st.just(Plain()) | riches | st.builds(Needy, words), min_size=1, max_size=3))
def test_parse_of_print_is_the_same(passes: list[Pass]) -> None:
    again = parse(format_pipeline(passes))
    assert list(again) == passes
    assert [list(map(type, dataclasses.astuple(p))) for p in again] == [
        list(map(type, dataclasses.astuple(p))) for p in passes
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a pipeline needs a pass before and behind each comma"),
        ("plain,", "a pipeline needs a pass before and behind each comma"),
        ("plain,,plain", "cannot read the pipeline at ',plain'"),
        ("plain{", "cannot read the pipeline at '{'"),
        ("plain plain", "cannot read the pipeline at 'plain'"),
        ("rich{count}", "cannot read the options of rich at 'count'"),
        ("rich{cuont=1}", "pass rich has no option 'cuont'"),
        ("plain{a=1}", "pass plain has no option 'a'"),
        ("rich{count=1,count=2}", "pass rich is given the option 'count' twice"),
        ("rich{count=1.5}", "option count of rich: '1.5' is not an integer"),
        ("rich{rate=fast}", "option rate of rich: 'fast' is not a number"),
        ("rich{on=1}", "option on of rich: '1' is not true or false"),
        ("rich{method=max}", "option method of rich: 'max' is not one of mse, minmax"),
        ("rich{bits=4}", "option bits of rich: '4' is not a list in parentheses"),
        ("rich{pair=(a)}", "option pair of rich: '(a)' does not hold 2 values"),
        ("rich{time=5}", None),
        ("rich{time=5 parsecs}", "cannot read '5 parsecs' as a latency"),
        ("needy", "pass needy needs the option what"),
    ],
)
def test_refusals(text: str, message: str | None) -> None:
    if message is None:
        parse(text)
        return
    with pytest.raises(UsageError) as error:
        parse(text)
    assert error.value.message == message


def test_hints() -> None:
    with pytest.raises(UsageError, match="did you mean count"):
        parse("rich{cuont=1}")
    with pytest.raises(UsageError, match="it takes no options"):
        parse("plain{a=1}")
    with pytest.raises(UsageError, match="did you mean solve-bits"):
        parse_pipeline("solve-bit")
