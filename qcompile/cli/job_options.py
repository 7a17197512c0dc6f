"""Flags of the verbs that plan: `compile` and `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.errors import UsageError

BUDGETS, DATA, PLAN, EXPERT = "Budgets", "Data", "Precision", "Inside the compiler"

Target = Annotated[
    str, typer.Option("-t", "--target", help="Machine to compile for: cpu is this one; see `qcompile targets`.")
]
Latency = Annotated[
    str | None,
    typer.Option(
        "--latency", metavar="TIME", rich_help_panel=BUDGETS, help="One sample, end to end: 5ms, 800us, 0.1s."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", rich_help_panel=BUDGETS, help="Packed weights: 4MiB, 300kB."),
]
Pin = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="REGEX=wNaN", rich_help_panel=PLAN, help="Fix the bits of matching layers. Repeat."),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(
        "--protect", metavar="REGEX", rich_help_panel=PLAN, help="Matching layers keep the widest bits. Repeat."
    ),
]
WeightBits = Annotated[
    str | None,
    typer.Option("--bits", metavar="N,…", rich_help_panel=PLAN, help="Weight bits to choose from: 2,4,8."),
]
ActBits = Annotated[
    str | None,
    typer.Option("--act-bits", metavar="N,…", rich_help_panel=PLAN, help="Activation bits to choose from: 4,8."),
]
SensitivityName = Annotated[
    str | None,
    typer.Option(
        "--sensitivity", metavar="NAME", rich_help_panel=PLAN,
        help="How the loss of each choice is predicted; see docs/passes.md. A wrong name lists them.",
    ),
]  # fmt: skip
Rounding = Annotated[
    str | None,
    typer.Option(
        "--rounding", metavar="NAME", rich_help_panel=PLAN,
        help="How weights become integers: gptq, adaround, adaquant, discquant or nearest.",
    ),
]  # fmt: skip
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", metavar="REGEX=NAME", rich_help_panel=PLAN,
        help="Another sensitivity for matching layers, brought to the same scale. Repeat.",
    ),
]  # fmt: skip
Calib = Annotated[
    str | None,
    typer.Option(
        "-c", "--calib", metavar="PATH", rich_help_panel=DATA,
        help="Calibration samples: .npz or folder of images. Without it accuracy is unverified.",
    ),
]  # fmt: skip
Costs = Annotated[
    Path | None,
    typer.Option(
        "--costs", metavar="FILE", rich_help_panel=EXPERT,
        help="Costs measured on a device of the target, used where nothing can be measured.",
    ),
]  # fmt: skip
Holdout = Annotated[
    str | None,
    typer.Option(
        "--holdout", metavar="PATH", rich_help_panel=DATA,
        help="Samples that only judge accuracy, best with labels. [default: an eighth of the calibration samples]",
    ),
]  # fmt: skip
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, rich_help_panel=DATA, help="Most calibration samples to use.", show_default=False),
]
Passes = Annotated[
    str | None,
    typer.Option("--passes", metavar="SPEC", rich_help_panel=EXPERT, help="Passes on the float graph instead of ours."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, rich_help_panel=EXPERT, help="Of the analyses.")]
Threads = Annotated[int, typer.Option("--threads", min=1, rich_help_panel=EXPERT, help="That measured code may use.")]
NoMeasure = Annotated[
    bool, typer.Option("--no-measure", rich_help_panel=EXPERT, help="Estimate costs, run nothing on the device.")
]


def metrics(texts: list[str] | None) -> dict[str, str]:
    """`features.*=sqnr` … → sensitivity by regular expression, in order.  Raises UsageError."""
    found = {}
    for text in texts or ():
        pattern, _, name = text.rpartition("=")
        if not pattern or not name:
            raise UsageError(f"cannot read --metric {text!r}", hint="such as 'features.*=sqnr'")
        found[pattern] = name
    return found


def names(text: str | None) -> tuple[str, ...]:
    """`memory,latency` → its parts."""
    return () if text is None else tuple(part.strip() for part in text.split(","))
