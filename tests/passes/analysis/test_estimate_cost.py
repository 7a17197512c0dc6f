"""Which widths share a price."""

from __future__ import annotations

import pytest

from passes.analysis import estimate_cost
from passes.analysis.estimate_cost import EstimateCost, representatives
from qcompile.pm.base import PassContext
from targets.x86_64.target import X86_VNNI


def test_a_width_is_priced_as_the_widest_of_its_step() -> None:
    assert representatives((2, 3, 4, 5, 6, 7, 8), (4, 5, 8)) == {2: 4, 3: 4, 4: 4, 5: 5, 6: 8, 7: 8, 8: 8}
    assert representatives((4, 6), (6, 8)) == {4: 6, 6: 6}


def test_widths_below_the_stored_one_pay_for_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that additions read too is stored at 8 bits: 7 bits cost a copy, 8 do not."""
    seen: list[tuple[int, int]] = []

    class StopError(Exception):
        pass

    class Pricer:
        def __init__(self, *args: object) -> None:
            pass

        def collect(self, pairs: list[tuple[int, int]]) -> None:
            seen.extend(pairs)

        def measure_missing(self) -> None:
            raise StopError

    monkeypatch.setattr(estimate_cost, "_Pricer", Pricer)
    with pytest.raises(StopError):
        EstimateCost().run(None, PassContext(X86_VNNI))  # type: ignore[arg-type]
    acts = {a for _, a in seen}
    assert {7, 8} <= acts
    assert acts == {max(b for b in X86_VNNI.act_bits if b <= 6), 7, 8}
