"""Take the precision of every layer from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from passes.plan.pins import check_supported, check_ties
from passes.structure import Structure
from qcompile.errors import UsageError
from qcompile.ir import Aspect, Graph
from qcompile.pm.base import ON_FLOAT, Exact, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, BitChoice, Bits
from qcompile.units import format_bits

_FORMAT = 'a plan is a JSON object {"bits": {"layer": [weight bits, activation bits], …}}'


@dataclass(frozen=True)
class PlanFromFile(Pass):
    """Give each layer the bits a JSON file says: {"bits": {layer: [w, a]}}, for all layers.

    Before:  a canonical float graph        After:  note bits
    """

    name: ClassVar[str] = "plan-from-file"
    levels = ON_FLOAT
    provides = (BITS,)
    changes = Aspect.NOTHING
    preserves = Exact()

    path: str = ""

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError where the file cannot be read or does not fit the network or the target."""
        structure = Structure(graph)
        given = read_plan(self.path)
        _check_layers(self.path, given, structure.layers)
        plan = {layer: given[layer] for layer in structure.layers}
        check_ties(tuple(structure.tied().values()), plan, "planned")
        check_supported(plan, ctx.target)
        notes = graph.notes.with_table(BITS, {layer: BitChoice(*bits) for layer, bits in plan.items()})
        return PassResult(
            graph.with_notes(notes), Report(done=tuple(f"{k}: {format_bits(b)}" for k, b in plan.items()))
        )


def read_plan(path: str) -> dict[str, Bits]:
    """The plan in a file, whatever network it is for.

    Raises:
        UsageError: no such file, not JSON, or not of the form above (every wrong entry is named).
    """
    if not path:
        raise UsageError("plan-from-file needs the option path", hint="plan-from-file{path=plan.json}")
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"the plan {path} is not JSON: {error}", hint=_FORMAT) from None
    bits = data.get("bits") if isinstance(data, dict) else None
    if not isinstance(bits, dict):
        raise UsageError(f'the plan {path} has no object "bits"', hint=_FORMAT)
    wrong = [layer for layer, pair in bits.items() if not _is_pair(pair)]
    if wrong:
        raise UsageError(
            f"the plan {path} has no pair of integers for {', '.join(f'{k!r} ({bits[k]})' for k in wrong)}",
            hint=_FORMAT,
        )
    return {layer: (pair[0], pair[1]) for layer, pair in bits.items()}


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(b) is int for b in pair)


def _check_layers(path: str, given: dict[str, Bits], layers: tuple[str, ...]) -> None:
    unknown = [layer for layer in given if layer not in layers]
    missing = [layer for layer in layers if layer not in given]
    parts = []
    if unknown:
        parts.append(f"names unknown layers: {', '.join(map(repr, unknown))}")
    if missing:
        parts.append(f"lacks the layers: {', '.join(map(repr, missing))}")
    if parts:
        near = [match for layer in unknown for match in get_close_matches(layer, missing, n=1)]
        raise UsageError(
            f"the plan {path} {' and '.join(parts)}",
            hint=f"did you mean {', '.join(map(repr, near))}?" if near else None,
        )
