"""What a measured drop in accuracy says about the true one: exact one-sided bounds, no distribution assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of the stated upper bounds."""


@dataclass(frozen=True)
class Drop:
    """Accuracy lost on the same samples by two networks.

    Attributes:
        metric: "top-1" (share of right answers) or "agreement" (share of samples answered as the float network does).
        samples: compared.
        reference: the float network's share; 1 for agreement.
        value: the network's share.
        lost, gained: samples (or, for images answered position by position, their equivalent) only the float network
            gets right, and only the other one.
    """

    metric: str
    samples: int
    reference: float
    value: float
    lost: float
    gained: float

    @property
    def drop(self) -> float:
        """Measured, as a fraction of all samples; negative where accuracy rose."""
        return (self.lost - self.gained) / self.samples

    @property
    def upper(self) -> float:
        """With CONFIDENCE the true drop is below this, on data of which the samples are a fair draw."""
        return drop_bound(self.lost, self.gained, self.samples)

    def to_json(self) -> dict[str, float | int | str]:
        """Plain values."""
        return {
            "metric": self.metric, "samples": self.samples, "float": self.reference, "value": self.value,
            "drop": self.drop, "drop_below": self.upper, "confidence": CONFIDENCE,
        }  # fmt: skip


def drop_bound(lost: float, gained: float, samples: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of P(lost) − P(gained) from paired samples.

    Clopper and Pearson's exact bounds (1934) of both shares; where something was gained each gets half of the error
    probability (Bonferroni).  Fractions of samples are rounded against the network.
    """
    high, low = math.ceil(lost), math.floor(gained)
    if low == 0:
        return upper_share(high, samples, confidence)
    half = 1 - (1 - confidence) / 2
    return upper_share(high, samples, half) - (1 - upper_share(samples - low, samples, half))


def upper_share(hits: int, samples: int, confidence: float) -> float:
    """The largest probability at which so few hits are not rarer than 1 − confidence."""
    if hits >= samples:
        return 1.0
    low, high = hits / samples, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, samples, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(hits: int, samples: int, share: float) -> float:
    """P(X ≤ hits) of the binomial distribution."""
    if share <= 0.0 or share >= 1.0:
        return 1.0 if share <= 0.0 else float(hits >= samples)
    logs = [
        math.lgamma(samples + 1) - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
        + k * math.log(share) + (samples - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))
