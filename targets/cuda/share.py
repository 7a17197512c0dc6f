"""Layers of one geometry as one kernel: the numbers in which they differ become parameters of the launch.

Zero points, limits and scale shifts of a layer are literals in its text.  Two texts that differ only in literals
are one kernel with those literals as scalar parameters, which on the device lie in constant memory as a literal
would.  The printer marks only literals that end in values: those that decide addresses, sizes or what runs stay,
because the compiler makes better code of them.  ResNet-56 has 65 kernels and 20 texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from targets.c.printer import c_type, literal

NAME = "\x01"
"""In a template: where the kernel's name goes."""
_PARAMETERS, _ARGUMENTS = "\x02", "\x03"
_OPEN, _CLOSE = "\x04", "\x05"
_MARKED = re.compile(f"{_OPEN}(\\w+):(-?\\d+){_CLOSE}")


def marked(value: int, dtype: str) -> str:
    """A literal that may become a parameter."""
    return f"{_OPEN}{dtype}:{value}{_CLOSE}"


def parameters(declared: str) -> str:
    """A list of parameters, with room for more."""
    return f"{declared}{_PARAMETERS}"


def arguments(given: str) -> str:
    """A list of arguments that passes on those that `parameters` leaves room for."""
    return f"{given}{_ARGUMENTS}"


@dataclass(frozen=True, slots=True)
class Shared:
    """A kernel's text, its name, and the numbers this launch gives its last parameters."""

    text: str
    name: str
    numbers: tuple[int, ...]


def share(templates: Sequence[str]) -> list[Shared]:
    """The kernels of marked texts, in order; equal texts have equal names, which are hashes of what they say."""
    groups: dict[tuple[str, ...], list[int]] = {}
    found = [_MARKED.findall(template) for template in templates]
    for i, template in enumerate(templates):
        groups.setdefault((_MARKED.sub(_OPEN, template), *(dtype for dtype, _ in found[i])), []).append(i)
    results: dict[int, Shared] = {}
    for (skeleton, *dtypes), members in groups.items():
        rows = [tuple(int(value) for _, value in found[i]) for i in members]
        columns = list(zip(*rows, strict=True))
        names: dict[tuple[str, tuple[int, ...]], str] = {}
        words = []
        for dtype, column in zip(dtypes, columns, strict=True):
            same = all(value == column[0] for value in column)
            words.append(
                literal(column[0], dtype) if same else names.setdefault((dtype, column), f"q_number{len(names)}")
            )
        filled = "".join(p + w for p, w in zip(skeleton.split(_OPEN), [*words, ""], strict=True))
        declared = "".join(f", {c_type(dtype)} {name}" for (dtype, _), name in names.items())
        passed = "".join(f", {name}" for name in names.values())
        text = filled.replace(_PARAMETERS, declared).replace(_ARGUMENTS, passed)
        name = f"qk_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        for place, i in enumerate(members):
            numbers = tuple(column[place] for _, column in names)
            results[i] = Shared(text.replace(NAME, name), name, numbers)
    return [results[i] for i in range(len(templates))]
