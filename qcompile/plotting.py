"""Pictures of plans.  Needs matplotlib, which is an extra: `pip install 'qcompile[plot]'`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.errors import InstallError

FORMATS = ("svg", "png", "pdf")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_front(path: Path, axis: str, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Loss on held-out data and accuracy over bytes or milliseconds; the same rows give the same bytes.

    Args:
        path: .svg, .png or .pdf.
        axis: "memory" or "latency".
        rows: as `qcompile.planning.sweep_front` gives them.
        title: above the picture.

    Raises:
        InstallError: matplotlib is not there.
    """
    if not can_plot():
        raise InstallError("a picture needs matplotlib", hint="pip install 'qcompile[plot]'")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cost = [row["bytes"] / 1024 if axis == "memory" else row["predicted_ms"] for row in rows]
    metric = rows[0]["accuracy"]["metric"]
    # Identifiers inside an SVG are random unless they are salted.
    with matplotlib.rc_context({"svg.hashsalt": "qcompile", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        left = figure.add_subplot()
        left.plot(cost, [row["held_out_loss"] for row in rows], "o-", color="tab:blue", label="loss, measured")
        left.plot(
            cost, [row["predicted_loss"] for row in rows], "--", color="tab:blue", alpha=0.6, label="loss, predicted"
        )
        left.set_yscale("log")
        left.set_xlabel("packed weights, KiB" if axis == "memory" else "predicted latency, ms")
        left.set_ylabel("loss on held-out data", color="tab:blue")
        right = left.twinx()
        accuracy = [100 * row["accuracy"]["value"] for row in rows]
        right.plot(cost, accuracy, "s-", color="tab:orange", label=metric)
        right.set_ylabel(f"{metric}, %", color="tab:orange")
        lines = [*left.get_lines(), *right.get_lines()]
        left.legend(lines, [str(line.get_label()) for line in lines], loc="center right")
        left.set_title(title)
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
        figure.savefig(path, metadata=dated)
