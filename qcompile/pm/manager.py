"""Runs pipelines: checks them before any work, and checks the promises of each pass behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from qcompile.errors import GraphError, PassContractError, UsageError
from qcompile.ir import Aspect, Graph, NoteKey, Notes, array_hash, verify
from qcompile.pm.base import Pass, PassContext, PassResult, Report
from qcompile.target.program import Program


class Instrument(Protocol):
    """Looks on while a pipeline runs; it can stop it by raising, and change nothing."""

    def before(self, step: int, pass_: Pass, graph: Graph, ctx: PassContext) -> None:
        """Called before pass number `step` (from 1)."""

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        """Called once the promises of the pass have been checked."""


class RunResult(NamedTuple):
    """What a pipeline made.

    Attributes:
        graph: the last graph with all valid notes.
        program: the lowered program, or None.
        reports: by pass name, in order; the second run of a pass is `name#2`.
    """

    graph: Graph
    program: Program | None
    reports: Mapping[str, Report]


@dataclass(frozen=True)
class PassManager:
    """A pipeline and the instruments that look on.

    Attributes:
        passes: in order.
        instruments: called around every pass, in order.
    """

    passes: Sequence[Pass]
    instruments: Sequence[Instrument] = field(default_factory=tuple)

    def check(self, level: str, notes: Iterable[NoteKey[Any]] = (), ctx: PassContext | None = None) -> None:
        """Find what cannot work before any work is done.

        Args:
            level: of the graph the pipeline will get.
            notes: keys that graph holds.
            ctx: where given, what passes need of it is checked too, except `program`, which a pass may make.

        Raises:
            UsageError: levels do not chain, or a note or an input is missing where it is needed.
        """
        held = set(notes)
        lost: dict[NoteKey[Any], tuple[int, Pass]] = {}
        for step, pass_ in enumerate(self.passes, start=1):
            where = f"step {step} of the pipeline, {pass_.name},"
            if pass_.levels.before != level:
                raise UsageError(f"{where} takes a graph of level {pass_.levels.before}, but gets one of {level}")
            for key in pass_.requires:
                if key not in held:
                    raise self._missing(where, step, key, lost.get(key))
            if ctx is not None:
                _check_needs(pass_, ctx, where, made=True)
            for key in {key for key in held if key.depends & pass_.changes}:
                held.discard(key)
                lost[key] = (step, pass_)
            held.update(pass_.provides)
            level = pass_.levels.after

    def _missing(self, where: str, step: int, key: NoteKey[Any], lost: tuple[int, Pass] | None) -> UsageError:
        providers = [p.name for p in self.passes if key in p.provides]
        if lost is not None:
            # Flag.name of a combination is "A|B".
            changed = (lost[1].changes & key.depends).name or ""
            return UsageError(
                f"{where} needs the note {key.name!r}, which step {lost[0]}, {lost[1].name}, makes invalid: "
                f"it changes {changed.lower().replace('|', ' and ')}",
                hint=f"run {providers[0]} behind {lost[1].name}" if providers else None,
            )
        later = [p.name for p in self.passes[step:] if key in p.provides]
        return UsageError(
            f"{where} needs the note {key.name!r}, which no earlier step provides",
            hint=f"run {later[0]} before it" if later else None,
        )

    def run(self, graph: Graph, ctx: PassContext) -> RunResult:
        """Check the pipeline, then run it.

        Raises:
            UsageError: the pipeline does not fit the graph or the context.
            PassContractError: a pass broke a promise.
            QcompileError: whatever a pass raises.
        """
        self.check(graph.level, graph.notes.keys, ctx)
        reports: dict[str, Report] = {}
        for step, pass_ in enumerate(self.passes, start=1):
            _check_needs(pass_, ctx, f"step {step} of the pipeline, {pass_.name},", made=False)
            for instrument in self.instruments:
                instrument.before(step, pass_, graph, ctx)
            try:
                result = pass_.run(graph, ctx)
            except Exception as error:
                error.add_note(f"raised in step {step} of the pipeline, {pass_.name}")
                raise
            after = check_promises(pass_, graph, result)
            if result.program is not None or pass_.changes:
                # A program describes one graph; a pass that changes the graph makes it again or drops it.
                ctx = replace(ctx, program=result.program)
            for instrument in self.instruments:
                instrument.after(step, pass_, graph, after, result.report, ctx)
            reports[_free(pass_.name, reports)] = result.report
            graph = after
        return RunResult(graph, ctx.program, reports)


def _check_needs(pass_: Pass, ctx: PassContext, where: str, *, made: bool) -> None:
    for need in pass_.needs:
        if getattr(ctx, need) in (None, False) and not (made and need == "program"):
            what = {
                "calibration": "calibration data",
                "holdout": "calibration data held back",
                "labels": "labels in the calibration data",
                "backend": "a backend",
                "costs": "a cost cache",
                "program": "a lowered program",
            }
            raise UsageError(f"{where} needs {what.get(need, need)}")


def _free(name: str, taken: Mapping[str, Report]) -> str:
    count = 1 + sum(key == name or key.startswith(f"{name}#") for key in taken)
    return name if count == 1 else f"{name}#{count}"


def check_promises(pass_: Pass, before: Graph, result: PassResult) -> Graph:
    """The graph a pass returned, with exactly the notes that still hold.

    Notes survive unless they depend on something the pass may change; of what the pass noted, only what it
    provides is kept, so a pass cannot lose or alter the facts of others.

    Raises:
        PassContractError: level, structure, weights or notes are not as the pass promises, or the graph is
        broken.
    """
    if not isinstance(result, PassResult):
        raise _broken(pass_, f"returned {type(result).__name__}, not a PassResult")
    after = result.graph
    if after.level != pass_.levels.after:
        raise _broken(pass_, f"promises level {pass_.levels.after}, but returned level {after.level}")
    try:
        verify(after)
    except GraphError as error:
        raise _broken(pass_, f"returned a graph that breaks the rules: {error.message}", error.node) from error
    if not pass_.changes and after.content_hash != before.content_hash:
        raise _broken(pass_, "promises to change nothing, but returned another graph")
    if not pass_.changes & Aspect.STRUCTURE and _structure(after) != _structure(before):
        raise _broken(pass_, "promises to keep the structure, but changed it")
    if not pass_.changes & Aspect.WEIGHTS and (name := _changed_constant(before, after)):
        raise _broken(pass_, f"promises to keep the weights, but changed the constant {name!r}")
    if missing := [key.name for key in pass_.provides if key not in after.notes]:
        raise _broken(pass_, f"promises the note {missing[0]!r}, but did not make it")
    for key in after.notes.keys - set(pass_.provides):
        if key not in before.notes or after.notes[key] is not before.notes[key]:
            raise _broken(pass_, f"made the note {key.name!r}, which it does not say it provides")
    kept = before.notes.without(pass_.changes)
    tables = {key: kept[key] for key in kept.keys} | {key: after.notes[key] for key in pass_.provides}
    return after.with_notes(Notes(tables))


def _structure(graph: Graph) -> object:
    nodes = [(n.name, n.op, n.inputs, n.consts, n.attrs, n.type) for n in graph.nodes]
    return graph.level, graph.inputs, graph.outputs, nodes, graph.tail and _structure(graph.tail)


def _changed_constant(before: Graph, after: Graph) -> str | None:
    """A constant of the same name with another content; constants may come and go with the structure."""
    for name, array in after.consts.items():
        held = before.consts.get(name)
        if held is not None and held is not array and array_hash(held) != array_hash(array):
            return name
    return None


def _broken(pass_: Pass, what: str, node: str | None = None) -> PassContractError:
    cls = type(pass_)
    return PassContractError(
        f"pass {pass_.name} {what}",
        node=node,
        hint=f"this is a defect of {cls.__module__}, not of your model; please tell its author",
    )
