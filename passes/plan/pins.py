"""Pins: precisions the user has fixed for layers, by regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from qcompile.errors import UsageError
from qcompile.pm.facts import Bits
from qcompile.target.model import Target
from qcompile.units import format_bits


def pinned(layers: Sequence[str], pins: Mapping[str, Bits]) -> dict[str, Bits]:
    """Layer → the precision it is pinned to, for layers some pattern matches from end to end; the last one
    wins.

    Raises:
        UsageError: a pattern cannot be read, or matches no layer.
    """
    found: dict[str, Bits] = {}
    for pattern, bits in pins.items():
        hits = matching(layers, pattern, "pin")
        found.update(dict.fromkeys(hits, (int(bits[0]), int(bits[1]))))
    return found


def protected(layers: Sequence[str], patterns: Sequence[str], target: Target) -> dict[str, Bits]:
    """Layer → the widest precision the target has, for layers some pattern matches (MixDQ's protection list).

    Raises:
        UsageError: a pattern cannot be read, or matches no layer.
    """
    widest = (max(target.weight_bits), max(target.act_bits))
    hits = [layer for pattern in patterns for layer in matching(layers, pattern, "protect")]
    return dict.fromkeys(hits, widest)


def matching(layers: Sequence[str], pattern: str, what: str) -> list[str]:
    """The layers a pattern matches from end to end, at least one.  Raises UsageError, calling the pattern `what`."""
    try:
        hits = [layer for layer in layers if re.fullmatch(pattern, layer)]
    except re.error as error:
        raise UsageError(f"{what} {pattern!r} is not a regular expression: {error}") from None
    if not hits:
        near = get_close_matches(pattern, layers, n=3)
        raise UsageError(
            f"{what} {pattern!r} matches no layer",
            hint=f"did you mean {', '.join(near)}?" if near else f"layers are {', '.join(layers[:8])}",
        )
    return hits


def check_ties(ties: Sequence[Sequence[str]], bits: Mapping[str, Bits], what: str) -> None:
    """Raise UsageError where layers that read the same values are given different activation bits.

    Args:
        ties: layers that share their activation bits.
        bits: what some (or all) layers are given.
        what: the participle for the message: "pinned", "planned".
    """
    for tie in ties:
        given = [layer for layer in tie if layer in bits]
        for layer in given[1:]:
            if bits[layer][1] != bits[given[0]][1]:
                raise UsageError(
                    f"{given[0]!r} is {what} to {format_bits(bits[given[0]])} and {layer!r} to "
                    f"{format_bits(bits[layer])}, but both read the same values and share their activation bits",
                )


def check_supported(bits: Mapping[str, Bits], target: Target) -> None:
    """Raise UsageError naming every layer whose precision the target has no kernels for."""
    wrong = [
        f"{layer} ({format_bits(choice)})"
        for layer, choice in bits.items()
        if choice[0] not in target.weight_bits or choice[1] not in target.act_bits
    ]
    if wrong:
        raise UsageError(
            f"target {target.name!r} does not support the precision of {', '.join(wrong)}",
            hint=f"weights take {_list(target.weight_bits)} bits, activations {_list(target.act_bits)}",
        )


def _list(bits: Sequence[int]) -> str:
    return ", ".join(map(str, bits))
