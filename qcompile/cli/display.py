"""Results as text for people: aligned rows, and tables of whatever the API returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from qcompile.units import format_bytes

Show = Callable[[Console], None]


def rows(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """`name  value` lines, the values aligned; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        line(console, f"{name:<{width}}{value}")


def memory_plan(arena: int, bound: int) -> str:
    """An arena beside the most that is alive at once: `1.7 MiB = 1.00 × lower bound`."""
    return f"{format_bytes(arena)} = {arena / bound:.2f} × lower bound" if bound else format_bytes(arena)


def line(console: Console, text: str) -> None:
    """One line as it is: no markup, no wrapping, no colours."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(console: Console, value: Any, title: str = "") -> None:
    """Mappings, sequences and plain values as rows and tables, nested ones under their names."""
    if isinstance(value, Mapping):
        if value and all(isinstance(item, Mapping) for item in value.values()):
            _table(console, [{"name": name, **item} for name, item in value.items()], title)
            return
        flat = {k: v for k, v in value.items() if not _is_nested(v)}
        if title and flat:
            line(console, f"\n{title}")
        rows(console, [(_words(k), cell(v) or "none") for k, v in flat.items()])
        for name, item in value.items():
            if _is_nested(item):
                show(console, item, _words(name))
    elif _is_nested(value):
        _table(console, value, title)
    else:
        line(console, f"{title}  {cell(value)}" if title else cell(value))


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _table(console: Console, items: Sequence[Mapping[str, Any]], title: str) -> None:
    keys = dict.fromkeys(key for item in items for key in item)
    columns = [key for key in keys if any(cell(item.get(key)) for item in items)]
    if title:
        line(console, f"\n{title}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, highlight=False)
    for column in columns:
        numeric = all(isinstance(item.get(column), int | float | None) for item in items)
        table.add_column(_words(column), justify="right" if numeric else "left", overflow="fold")
    for item in items:
        # Brackets in names are not markup.
        table.add_row(*(cell(item.get(column)).replace("[", r"\[") for column in columns))
    console.print(table, highlight=False)


def _words(key: Any) -> str:
    return str(key).replace("_", " ")


def cell(value: Any) -> str:
    """A plain value in a few characters."""
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


def percent(value: float | None) -> str:
    """A fraction as `99.72 %`, nothing where it is unknown."""
    return "" if value is None else f"{100 * value:.2f} %"


def accuracy(found: Mapping[str, Any]) -> str:
    """A measured drop with its bound: `top-1 -0.28 % on 360 held-out samples, with 95 % confidence below 1.2 %`."""
    if not found:
        return ""
    last = found.get("built") or found
    return (
        f"{last['metric']} {100 * -last['drop']:+.2f} % on {last['samples']} held-out samples; "
        f"the drop is below {100 * last['drop_below']:.2g} % with {100 * last['confidence']:.0f} % confidence"
    )


def milliseconds(value: float | None) -> str:
    """`3.02 ms`, nothing where it is unknown."""
    return "" if value is None else f"{value:.3g} ms"
