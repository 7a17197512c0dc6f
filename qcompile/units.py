"""Quantities with mandatory units: latencies (`5ms`), sizes (`4MiB`), fractions (`0.5%`), bit pairs (`w4a8`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qcompile.errors import UsageError

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_BYTES = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
MOST_POINTS = 200
"""Values of one range."""
_NUMBER = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9.]*)\s*$")


def _quantity(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    match = _NUMBER.match(text)
    if not match or match.group(2) not in units:
        raise UsageError(
            f"cannot read {text!r} as a {what}",
            hint=f"write a number and a unit, such as {example}; units: {', '.join(units)}",
        )
    value = float(match.group(1)) * units[match.group(2)]
    if not value > 0:
        raise UsageError(f"a {what} must be greater than zero, not {text!r}", hint=f"for example {example}")
    return value


def parse_latency(text: str) -> float:
    """Seconds from `5ms`, `800us`, `0.1s`.  Raises UsageError where the unit is missing or unknown."""
    return _quantity(text, _SECONDS, "latency", "5ms")


def parse_bytes(text: str) -> int:
    """Bytes from `4MiB`, `300kB`, `512B`.  Raises UsageError where the unit is missing or unknown."""
    return int(_quantity(text, _BYTES, "size", "4MiB"))


def parse_fraction(text: str) -> float:
    """0.005 from `0.5%`, at least 0 and below 1.  Raises UsageError where the percent sign is missing."""
    match = _NUMBER.match(text)
    if not match or match.group(2) != "%":
        raise UsageError(f"cannot read {text!r} as a percentage", hint="write a number and %, such as 0.5%")
    value = float(match.group(1)) / 100
    if not 0 <= value < 1:
        raise UsageError(f"a percentage must be at least 0% and below 100%, not {text!r}", hint="for example 0.5%")
    return value


def parse_span(text: str, parse: Callable[[str], float], points: int) -> list[float]:
    """Values from `2ms:10ms:0.5ms` (first, last, step) or `2ms:10ms` (evenly spaced points), rising.

    Args:
        text: as above.
        parse: of one value, such as `parse_latency`.
        points: at least 2; used where no step is given.

    Raises:
        UsageError: not two or three values, or they do not rise.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise UsageError(
            f"cannot read {text!r} as a range", hint="first:last or first:last:step, such as 2ms:10ms:0.5ms"
        )
    first, last, *steps = (parse(part) for part in parts)
    if last <= first:
        raise UsageError(f"the range {text!r} does not rise", hint="the smaller value comes first")
    if not steps:
        return [first + (last - first) * i / (points - 1) for i in range(points)]
    count = int((last - first) / steps[0] + 1e-9) + 1
    if count > MOST_POINTS:
        raise UsageError(f"the range {text!r} has {count} values", hint=f"at most {MOST_POINTS}; take larger steps")
    return [first + steps[0] * i for i in range(count)]


def parse_bits(text: str) -> tuple[int, int]:
    """(weight bits, activation bits) from `w8a8`, `w4a8`, `w2a4`."""
    match = re.fullmatch(r"w([2-8])a([4-8])", text.strip().lower())
    if not match:
        raise UsageError(
            f"cannot read {text!r} as a bit width",
            hint="write weights and activations, such as w8a8 or w4a8 (weights 2 to 8 bits, activations 4 to 8)",
        )
    return int(match.group(1)), int(match.group(2))


def format_bits(pair: Sequence[int]) -> str:
    """(weight bits, activation bits) as `w4a8`, what `parse_bits` reads."""
    return f"w{pair[0]}a{pair[1]}"


def format_seconds(seconds: float) -> str:
    """A duration with three significant digits and its unit: `3.02 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def format_bytes(size: float) -> str:
    """A size with three significant digits and its binary unit: `4.2 MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{size / _BYTES[unit]:.3g} {unit}"
    return f"{int(size)} B"
