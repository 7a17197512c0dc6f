"""`qcompile explain ARTIFACT`: why the layers have the bits they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import accuracy, line, memory_plan, percent, show
from qcompile.cli.session import session
from qcompile.units import format_bits, format_bytes, format_seconds


def command(
    artifact: options.ArtifactPath,
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="One layer: its choices, costs and ties.")
    ] = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """What each layer costs and loses at its bits, and the plans that were compared.

    For one layer also its choices, the layers it is tied to, and what more of each budget would change (the program is
    solved again).
    """
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.explain(artifact, layer=layer)
        ui.result(found, lambda console: _show(console, found, layer))


def _show(console: Console, found: Mapping[str, Any], layer: str | None) -> None:
    apart = ("layers", "candidates", "accuracy", "marginal", "validity")
    shown = {key: value for key, value in found.items() if key not in apart}
    if shown.get("costs") == "roofline":
        shown["costs"] = "roofline: estimated, not measured"
    if plan := shown.get("memory_plan"):
        shown["memory_plan"] = memory_plan(plan["arena_bytes"], plan["lower_bound_bytes"])
    show(console, shown)
    if floor := accuracy(found.get("accuracy") or {}):
        line(console, f"accuracy  {floor}")
    plans = [
        {"plan": c["plan"], "loss on held-out data": c["loss"], "agreement": percent(c["agreement"]),
         "chosen": "yes" if c["chosen"] else ""}
        for c in found["candidates"]
    ]  # fmt: skip
    if plans:
        show(console, plans, "plans that were compared")
    show(console, [_layer_row(name, facts) for name, facts in found["layers"].items()], "layers")
    if layer is not None:
        show(console, [_choice_row(choice) for choice in found["layers"][layer]["choices"]], f"choices of {layer}")
        more = [_more_row(row, layer) for row in found.get("marginal", ())]
        if more:
            show(console, more, "what more of a budget would change")


def _layer_row(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    now = facts["now"] or {}
    best = next(iter(facts["upgrades"]), None)
    return {
        "layer": name,
        "bits": format_bits(facts["bits"]),
        **({k: v for k, v in _choice_row(now).items() if k != "bits"} if now else {}),
        "next step": f"{format_bits(best['bits'])}: loss -{best['loss_saved']:.3g} for {best['extra_bytes']} B, "
        f"{best['extra_ms']:+.3g} ms" if best else "",
        "tied to": ", ".join(facts["tied_to"]),
    }  # fmt: skip


def _more_row(row: Mapping[str, Any], layer: str) -> dict[str, Any]:
    extra = format_bytes(row["extra"]) if row["axis"] == "memory" else format_seconds(row["extra"])
    changes = row["changes"]
    own = changes.get(layer)
    others = ", ".join(f"{name} {format_bits(after)}" for name, (_, after) in changes.items() if name != layer)
    return {
        "budget": f"{row['axis']} +{extra}", "predicted loss": row["loss"], "saved": row["saved"],
        layer: "as it is" if own is None else f"{format_bits(own[0])} → {format_bits(own[1])}",
        "other layers": others,
    }  # fmt: skip


def _choice_row(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bits": format_bits(choice["bits"]), "predicted loss": choice["loss"], "ms": choice["seconds"] * 1e3,
        "bytes": choice["bytes"],
    }  # fmt: skip
