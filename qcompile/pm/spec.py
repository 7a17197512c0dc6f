"""The text form of pipelines: `calibrate-ranges{method=mse},solve-bits{gap=0.0}`.

Options are the fields of the pass, read by their declared type.  A field may name its own reader in its
metadata (`field(metadata={"parse": parse_latency})` reads `5ms`).  Text with commas, braces or quotes is a
JSON string.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qcompile.errors import UsageError
from qcompile.pm.base import Pass
from qcompile.pm.registry import find_pass

_STRING = r'"(?:[^"\\]|\\.)*"'
_STEP = re.compile(rf"\s*([a-zA-Z0-9_.\-]+)\s*(?:\{{((?:[^\"{{}}]|{_STRING})*)\}})?\s*")
_OPTION = re.compile(
    rf"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*((?:{_STRING}|\((?:{_STRING}|[^()\"])*\)|[^,\"()])*?)\s*(?:,|$)"
)
_PLAIN = re.compile(r"[^\s,{}()\"=][^,{}()\"]*(?<!\s)|")


def parse_pipeline(text: str, find: Callable[[str], type[Pass]] = find_pass) -> tuple[Pass, ...]:
    """The passes a text names, in order.

    Args:
        text: pass names with options in braces, separated by commas.
        find: name → class.

    Raises:
        UsageError: the text cannot be read, a pass or option is unknown, or a value does not fit its option.
    """
    passes: list[Pass] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            rest = text[match.end() if match else at :].strip()
            raise UsageError(
                f"cannot read the pipeline at {rest[:30]!r}",
                hint="write pass-name{option=value,…},pass-name,…",
            )
        passes.append(make_pass(find(match[1]), dict(_options(match[1], match[2] or ""))))
        at = match.end() + 1
    if not passes or text.rstrip().endswith(","):
        raise UsageError("a pipeline needs a pass before and behind each comma")
    return tuple(passes)


def format_pipeline(passes: Sequence[Pass]) -> str:
    """The text `parse_pipeline` reads back to equal passes."""
    return ",".join(map(format_pass, passes))


def format_pass(pass_: Pass) -> str:
    """One pass; options at their default are left out."""
    shown = []
    for f in dataclasses.fields(pass_):
        value = getattr(pass_, f.name)
        if value != f.default or type(value) is not type(f.default):
            shown.append(f"{f.name}={_show(value)}")
    return f"{pass_.name}{{{','.join(shown)}}}" if shown else pass_.name


def _show(value: Any) -> str:
    if isinstance(value, str | Path):
        text = str(value)
        # What would read as nothing at all, or as something else, is quoted.
        return text if _PLAIN.fullmatch(text) and text not in ("", "None") else json.dumps(text)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_show, value))})"
    return str(value)


def make_pass(cls: type[Pass], options: Mapping[str, str]) -> Pass:
    """A pass from the texts of its options.

    Raises:
        UsageError: an option is unknown or its value does not fit.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1)
            known = f"options are {', '.join(fields)}" if fields else "it takes no options"
            raise UsageError(
                f"pass {cls.name} has no option {name!r}", hint=f"did you mean {near[0]}?" if near else known
            )
        values[name] = _value(cls.name, fields[name], hints[name], text)
    try:
        return cls(**values)
    except TypeError:
        missing = [
            f.name
            for f in fields.values()
            if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        raise UsageError(f"pass {cls.name} needs the option {', '.join(missing)}") from None


def _options(name: str, text: str) -> Iterator[tuple[str, str]]:
    at, seen = 0, set()
    while at < len(text) and text[at:].strip():
        match = _OPTION.match(text, at)
        if match is None:
            raise UsageError(
                f"cannot read the options of {name} at {text[at:].strip()[:30]!r}",
                hint="write option=value,…",
            )
        if match[1] in seen:
            raise UsageError(f"pass {name} is given the option {match[1]!r} twice")
        seen.add(match[1])
        yield match[1], match[2]
        at = match.end()


def _value(name: str, field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    try:
        return _convert(hint, text)
    except ValueError as error:
        parse = field.metadata.get("parse")
        if parse is not None:
            return parse(text)
        raise UsageError(f"option {field.name} of {name}: {error}") from None


def _convert(hint: Any, text: str) -> Any:
    """A value of the declared type; ValueError says what was expected."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in args and text == "None":
            return None
        return _first([a for a in args if a is not type(None)], text)
    if origin is Literal:
        for choice in args:
            if _unquote(text) == str(choice):
                return choice
        raise ValueError(f"{text!r} is not one of {', '.join(map(str, args))}")
    if origin is tuple:
        return _tuple(args, text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is not true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            what = "an integer" if hint is int else "a number"
            raise ValueError(f"{text!r} is not {what}") from None
    if hint in (str, Path):
        return hint(_unquote(text))
    raise ValueError(f"values of type {hint} cannot be written as text")


def _first(hints: Sequence[Any], text: str) -> Any:
    problems = []
    for hint in hints:
        try:
            return _convert(hint, text)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _tuple(args: Sequence[Any], text: str) -> tuple[Any, ...]:
    if not (text.startswith("(") and text.endswith(")")):
        raise ValueError(f"{text!r} is not a list in parentheses")
    inner = text[1:-1].strip().removesuffix(",")
    parts = [part.strip() for part in re.findall(rf"(?:{_STRING}|[^,\"])+", inner)]
    if len(args) == 2 and args[1] is ...:
        return tuple(_convert(args[0], part) for part in parts)
    if len(parts) != len(args):
        raise ValueError(f"{text!r} does not hold {len(args)} values")
    return tuple(_convert(hint, part) for hint, part in zip(args, parts, strict=True))


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise ValueError(f"{text} is not a JSON string") from None
