"""An accuracy floor: the bound on the drop, how many plans are measured, and which plan wins."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from passes.plan.bisect_plan import EXTRA, BisectPlan, last_kept
from passes.plan.confidence import Drop, drop_bound, upper_share
from passes.plan.judge import compare
from qcompile.errors import AccuracyError, PassContractError, UsageError
from qcompile.ir import BATCH, Graph, GraphBuilder, TensorType
from qcompile.pm.base import PassContext
from qcompile.pm.facts import BITS, BitChoice
from qcompile.target.model import Target
from qcompile.units import parse_bytes, parse_fraction, parse_latency, parse_span


class TestConfidence:
    def test_no_errors_gives_the_rule_of_three(self) -> None:
        assert upper_share(0, 300, 0.95) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)
        assert upper_share(300, 300, 0.95) == 1.0

    def test_equals_the_definition(self) -> None:
        """At the bound so few hits have exactly the error probability."""
        for hits, samples in ((1, 20), (3, 64), (17, 100)):
            share = upper_share(hits, samples, 0.9)
            tail = sum(math.comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(hits + 1))
            assert tail == pytest.approx(0.1, rel=1e-6)

    def test_the_bound_holds_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        for lost, gained in ((0.02, 0.0), (0.03, 0.02), (0.0, 0.0)):
            draws = rng.multinomial(100, [lost, gained, 1 - lost - gained], size=2000)
            bounds = {(a, b): drop_bound(a, b, 100) for a, b in {(int(a), int(b)) for a, b, _ in draws}}
            kept = [bounds[int(a), int(b)] >= lost - gained for a, b, _ in draws]
            assert np.mean(kept) >= 0.945

    def test_parts_of_samples_count_against_the_network(self) -> None:
        assert drop_bound(0.2, 0.9, 50) == drop_bound(1, 0, 50)

    def test_pairs(self) -> None:
        real, found = np.array([[0], [1], [2], [3]]), np.array([[0], [1], [2], [0]])
        assert compare(found, real, None) == Drop("agreement", 4, 1.0, 0.75, 1.0, 0.0)
        drop = compare(found, real, np.array([0, 0, 2, 0]))
        assert drop == Drop("top-1", 4, 0.5, 0.75, 0, 1)
        assert drop.drop == -0.25


class TestBisection:
    def test_finds_the_last_that_keeps_in_few_evaluations(self) -> None:
        for count in (*range(1, 40), 100, 255, 256):
            for last in range(-1, count, max(1, count // 9)):
                asked: list[int] = []

                def keeps(index: int, last: int = last, asked: list[int] = asked) -> bool:
                    asked.append(index)
                    return index <= last

                found = last_kept(count, keeps)
                assert found == (None if last < 0 else last)
                assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count + 1)) + EXTRA

    def test_looks_a_little_further_where_accuracy_is_not_monotone(self) -> None:
        """Plan 5 fails by chance, 6 and 7 keep; the bisection alone would end before them."""
        good = {*range(5), 6, 7}
        assert last_kept(8, good.__contains__) in (6, 7)
        rng = random.Random(0)
        for _ in range(200):
            good = {i for i in range(20) if rng.random() < 0.7}
            found = last_kept(20, good.__contains__)
            assert found is None or found in good


def graph() -> Graph:
    b = GraphBuilder("toy", "float")
    x = b.input("x", TensorType((BATCH, 4), "f32"))
    w = {"w": np.eye(4, dtype=np.float32)}
    b.output("y", b.add("linear", [b.add("linear", [x], name="one", consts=w)], name="two", consts=w))
    return b.build()


class FakeJudge:
    """Accuracy by the sum of weight bits; counts what it is asked."""

    def __init__(self, drops: dict[int, float], samples: int = 1000) -> None:
        self.drops, self.samples, self.evaluations = drops, samples, 0

    def drop(self, plan: dict[str, BitChoice]) -> Drop:
        self.evaluations += 1
        lost = self.drops[sum(bits.w for bits in plan.values())] * self.samples
        return Drop("top-1", self.samples, 0.9, 0.9 - lost / self.samples, lost, 0.0)


CHAIN = [{"one": BitChoice(a, 8), "two": BitChoice(b, 8)} for a, b in itertools.pairwise((8, 8, 7, 6, 5, 4, 3, 2))]
"""Sums of weight bits 16, 15, 13, 11, 9, 7, 5."""
DROPS = {16: 0.0, 15: 0.001, 13: 0.002, 11: 0.004, 9: 0.02, 7: 0.1, 5: 0.5}


def run(max_drop: float, drops: dict[int, float] = DROPS, **data: Any) -> tuple[Any, FakeJudge]:
    judge = FakeJudge(drops)
    ctx = PassContext(
        Target("toy", "for tests", "nowhere:Backend"), holdout=lambda: iter(()),
        data={"chain": CHAIN, "judge": judge, **data},
    )  # fmt: skip
    return BisectPlan(max_drop=max_drop).run(graph(), ctx), judge


def test_the_cheapest_plan_that_keeps_the_floor_wins() -> None:
    result, judge = run(0.005)
    assert dict(result.graph.notes[BITS]) == CHAIN[3]
    facts = result.report.facts
    assert facts["chosen"] == 3
    assert facts["evaluations"] == judge.evaluations <= math.ceil(math.log2(len(CHAIN) + 1)) + EXTRA
    accuracy = facts["accuracy"]
    assert (accuracy["drop"], accuracy["max_drop"], accuracy["metric"]) == (0.004, 0.005, "top-1")
    assert 0.004 < accuracy["drop_below"] < 0.02
    assert accuracy["confidence"] == 0.95


def test_a_floor_of_zero_and_an_exact_hit() -> None:
    assert run(0.0)[0].report.facts["chosen"] == 0
    assert run(0.02)[0].report.facts["chosen"] == 4


def test_plans_that_failed_when_built_are_left_out() -> None:
    result, _ = run(0.005, refused=[CHAIN[3]])
    assert dict(result.graph.notes[BITS]) == CHAIN[2]
    with pytest.raises(AccuracyError, match=r"built, even w8a8 loses more than 0\.5 %"):
        run(0.005, refused=CHAIN)


def test_where_even_w8a8_misses_it() -> None:
    with pytest.raises(AccuracyError, match=r"even w8a8 loses 3 % of top-1 on 1000 held-out samples, more than") as e:
        run(0.01, dict.fromkeys(DROPS, 0.03))
    assert e.value.exit_code == 5
    assert "--max-drop" in str(e.value)


def test_needs_a_chain() -> None:
    with pytest.raises(PassContractError, match="chain of plans"):
        run(0.01, chain=[])


@pytest.mark.parametrize("text", ["0.5", "5 percent", "-1%", "100%", "%", "", "1%%", "nan%"])
def test_percentages_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="percentage"):
        parse_fraction(text)


def test_percentages() -> None:
    assert [parse_fraction(text) for text in ("0.5%", "1 %", "0%", "99.9%")] == pytest.approx([0.005, 0.01, 0, 0.999])


def test_ranges() -> None:
    assert parse_span("2ms:10ms:2ms", parse_latency, 5) == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert parse_span("1KiB:2KiB", parse_bytes, 3) == [1024, 1536, 2048]
    for text in ("5ms", "10ms:2ms", "2ms:2ms", "1ms:2ms:3ms:4ms", "1:2", "2ms:10ms:0ms", "1us:1s:1us"):
        with pytest.raises(UsageError):
            parse_span(text, parse_latency, 5)
