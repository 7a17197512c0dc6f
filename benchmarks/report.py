"""From times to a table: medians, ratios to the best int8 peer, shares of the int8 dot-product peak."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.contenders import Contender

_FIGURE = re.compile(r"-|[0-9.]+( %)?")


@dataclass
class Row:
    """One contender on one network.

    Attributes:
        contender: who.
        seconds: median of each round; empty where it did not run.
        amx: whether the process held AMX tile registers.
        note: why it did not run, or what is special.
        facts: what the worker said about itself.
    """

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    amx: bool = False
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        """Seconds; None where it did not run."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def mebibytes(self) -> float | None:
        """What loading and running the model added to the process, at its peak; None where nobody knows."""
        held = self.facts.get("memory") or {}
        return None if None in (held.get("peak"), held.get("before")) else (held["peak"] - held["before"]) / 2**20

    @property
    def spread(self) -> float:
        """Width of the middle half of the rounds, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, middle, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / middle


@dataclass
class Result:
    """All contenders on one network with so many threads, round by round side by side.

    Attributes:
        peak_gops: of one core in each round; empty where it cannot be measured.
        macs: multiply-adds of convolutions and linear layers, as a direct kernel does them.
        load: load average before each round.
        others: CPUs that other processes used meanwhile, on average.
    """

    network: str
    threads: int
    macs: int
    rows: list[Row]
    peak_gops: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    others: float | None = None

    def best_peer(self, *, amx: bool) -> Row | None:
        """The fastest int8 peer that does without AMX, or the fastest of all."""
        peers = [r for r in self.rows if r.contender.is_int8_peer and r.seconds and (amx or not r.amx)]
        return min(peers, key=lambda r: r.median or 0.0, default=None)

    def share_of_peak(self, row: Row) -> float | None:
        """Direct multiply-adds in its median time, relative to what all its cores can do; may exceed one."""
        if not self.peak_gops or row.median is None:
            return None
        return 2e-9 * self.macs / row.median / (statistics.median(self.peak_gops) * self.threads)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        rows = []
        for row in self.rows:
            ratios = {name: ratio(row, self.best_peer(amx=amx)) for name, amx in (("vnni", False), ("any", True))}
            rows.append({**asdict(row), "median": row.median, "ratio": ratios, "peak_share": self.share_of_peak(row)})
        return {
            "network": self.network, "threads": self.threads, "macs": self.macs, "peak_gops": self.peak_gops,
            "load": self.load, "others": self.others, "rows": rows,
        }  # fmt: skip


def ratio(row: Row, peer: Row | None) -> float | None:
    """Time of a row over that of a peer: the median over the rounds, each of which saw the same machine."""
    if peer is None or not row.seconds or len(row.seconds) != len(peer.seconds):
        return None
    return statistics.median(a / b for a, b in zip(row.seconds, peer.seconds, strict=True))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of figures to the right."""
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_FIGURE.fullmatch(cell) for cell in column[1:]) for column in columns]

    def text(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join(f"{'-' * (w + 1)}{':' if r else '-'}" for w, r in zip(widths, right, strict=True))
    return "\n".join((text(lines[0]), f"|{rule}|", *map(text, lines[1:])))


def format_result(result: Result) -> str:
    """The table of one network."""
    vnni, any_ = result.best_peer(amx=False), result.best_peer(amx=True)
    lines = [("engine", "ms", "spread", "/ int8 peer", "/ with amx", "of peak", "MiB", "notes")]
    for row in result.rows:
        notes = [note for note in ("amx" if row.amx else "", row.note) if note]
        notes += ["best int8 peer"] if row is vnni else []
        share = result.share_of_peak(row)
        lines.append(
            (
                row.contender.name,
                _number(None if row.median is None else row.median * 1e3, 3),
                f"{100 * row.spread:.0f} %" if row.seconds else "-",
                _number(ratio(row, vnni), 2),
                _number(ratio(row, any_), 2),
                "-" if share is None else f"{100 * share:.0f} %",
                _number(row.mebibytes, 0),
                "; ".join(notes),
            )
        )
    peak = f"peak {statistics.median(result.peak_gops):.0f} GOPS a core" if result.peak_gops else "peak not measured"
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    others = "" if result.others is None else f", others used {result.others:.2f} CPUs"
    title = f"{result.network}, {threads}, {result.macs / 1e6:.1f} M multiply-adds, {peak}{others}"
    return f"### {title}\n\n{table(lines)}\n"


def format_summary(results: Sequence[Result]) -> str:
    """qcompile beside the best int8 peer, one line for each network; with AMX the best either has is compared."""
    lines: list[tuple[str, ...]] = [
        ("network", "threads", "qcompile ms", "peer ms", "ratio", "float io", "fastest", "amx", "fastest amx", "peer")
    ]
    for result in results:
        rows = {(row.contender.engine, row.contender.model): row for row in result.rows}
        vnni, any_ = result.best_peer(amx=False), result.best_peer(amx=True)
        ours = next((r for r in result.rows if r.contender.engine == "qcompile"), None)
        if ours is None or ours.median is None:
            continue
        floats = rows.get(("qcompile-float", ours.contender.model))
        fastest, tiles, tiles_fastest = (
            rows.get(("qcompile", f"{model}.qc")) for model in ("fastest", "w8a8-amx", "fastest-amx")
        )
        pairs = ((ours, vnni), (floats, vnni), (fastest, vnni), (tiles, any_), (tiles_fastest, any_))
        ratios = [_number(None if row is None else ratio(row, peer), 2) for row, peer in pairs]
        peer = "-" if vnni is None else vnni.contender.name
        times = [_number(None if row is None or row.median is None else row.median * 1e3, 3) for row in (ours, vnni)]
        lines.append((result.network, str(result.threads), *times, *ratios, peer))
    return table(lines)


def to_json(conditions: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """The file `--json` writes."""
    return {"conditions": dict(conditions), "results": [result.to_json() for result in results]}
