"""The pass manager: what it refuses before any work, and which broken promises it catches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.errors import PassContractError, UsageError
from qcompile.ir import BATCH, Aspect, Graph, GraphBuilder, Grid, NoteKey, Notes, TensorType
from qcompile.ir.text import from_text, same_graph, to_text
from qcompile.pm.base import (
    FLOAT_TO_INT,
    ON_FLOAT,
    ON_INT,
    Close,
    Exact,
    Levels,
    Nothing,
    Pass,
    PassContext,
    PassResult,
    Preserves,
    Report,
)
from qcompile.pm.instruments import Dump, KeepsFunction, Logging, Timing
from qcompile.pm.manager import PassManager
from qcompile.target.model import Target
from qcompile.target.program import Program


@dataclass(frozen=True, slots=True)
class Fact:
    value: int


SHAPE = NoteKey("shape", Fact, Aspect.STRUCTURE)
NUMBER = NoteKey("number", Fact, Aspect.STRUCTURE | Aspect.WEIGHTS)

CONTEXT = PassContext(Target("toy", "", ""))
NOTHING_LOST = Exact()
Work = Callable[[Graph, PassContext], PassResult]


def graph(scale: float = 1.0, lo: float = 0.0) -> Graph:
    b = GraphBuilder("toy", "float")
    x = b.input("x", TensorType((BATCH, 3), "f32"))
    y = b.add("linear", [x], name="fc", consts={"w": np.eye(3, dtype=np.float32) * np.float32(scale)})
    b.output("y", b.add("clip", [y], name="relu", attrs={"lo": lo}))
    return b.build()


def int_graph(zp: int = 0) -> Graph:
    b = GraphBuilder("toy", "int")
    grid = Grid(0.5, 0, "u8")
    x = b.input("x", TensorType((BATCH, 3), "u8"), grid)
    consts = {"m0": np.full((1,), 1 << 30, np.int32), "e": np.full((1,), 30, np.int32)}
    attrs = {"zp": zp, "lo": 0, "hi": 255, "dtype": "u8"}
    b.output("y", b.add("requant", [x], name="q", consts=consts, attrs=attrs), grid)
    return b.build()


def make(
    label: str,
    work: Work = lambda graph, ctx: PassResult(graph),
    *,
    levels: Levels = ON_FLOAT,
    requires: tuple[NoteKey[Any], ...] = (),
    provides: tuple[NoteKey[Any], ...] = (),
    changes: Aspect = Aspect.NOTHING,
    preserves: Preserves = NOTHING_LOST,
    needs: tuple[str, ...] = (),
) -> Pass:
    """A pass from a function; by default it does nothing."""

    def run(self: Pass, graph: Graph, ctx: PassContext) -> PassResult:
        return work(graph, ctx)

    members: dict[str, Any] = {
        "name": label, "levels": levels, "requires": requires, "provides": provides, "changes": changes,
        "preserves": preserves, "needs": needs, "run": run,
    }  # fmt: skip
    cls: type[Pass] = dataclass(frozen=True)(type("Made", (Pass,), members))
    return cls()


def noting(*keys: NoteKey[Any], value: int = 1) -> Work:
    def work(graph: Graph, ctx: PassContext) -> PassResult:
        notes = graph.notes
        for key in keys:
            notes = notes.with_table(key, {"fc": Fact(value)})
        return PassResult(graph.with_notes(notes), Report(done=("noted",), refused=("fc: not now",)))

    return work


MEASURE = make("measure", noting(NUMBER), provides=(NUMBER,))
FOLD = make("fold", lambda g, c: PassResult(graph(2.0).with_notes(g.notes)), changes=Aspect.WEIGHTS)
SOLVE = make("solve", requires=(NUMBER,))


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            [MEASURE, FOLD, SOLVE],
            "step 3 of the pipeline, solve, needs the note 'number', which step 2, fold, makes invalid: "
            "it changes weights\n  hint: run measure behind fold",
        ),
        (
            [SOLVE, MEASURE],
            "step 1 of the pipeline, solve, needs the note 'number', which no earlier step provides\n"
            "  hint: run measure before it",
        ),
        ([SOLVE], "step 1 of the pipeline, solve, needs the note 'number', which no earlier step provides"),
        (
            [make("lower", levels=FLOAT_TO_INT), MEASURE],
            "step 2 of the pipeline, measure, takes a graph of level float, but gets one of int",
        ),
        (
            [make("calibrate", needs=("calibration",))],
            "step 1 of the pipeline, calibrate, needs calibration data",
        ),
        (
            [make("label", needs=("labels",))],
            "step 1 of the pipeline, label, needs labels in the calibration data",
        ),
        ([make("emit", needs=("program",))], "step 1 of the pipeline, emit, needs a lowered program"),
    ],
)
def test_what_cannot_work_is_refused(passes: list[Pass], message: str) -> None:
    with pytest.raises(UsageError) as error:
        PassManager(passes).run(graph(), CONTEXT)
    assert str(error.value) == message


def test_nothing_runs_before_the_whole_pipeline_is_checked() -> None:
    ran: list[str] = []
    spy = make("spy", lambda g, c: PassResult(ran.append("spy") or g))
    with pytest.raises(UsageError):
        PassManager([spy, SOLVE]).run(graph(), CONTEXT)
    assert ran == []


def test_check_accepts_what_works() -> None:
    PassManager([MEASURE, SOLVE]).check("float")
    PassManager([SOLVE]).check("float", [NUMBER])
    PassManager([make("emit", needs=("program",), levels=ON_INT)]).check("int", (), CONTEXT)


def test_notes_go_when_what_they_depend_on_may_have_changed() -> None:
    both = make("both", noting(SHAPE, NUMBER), provides=(SHAPE, NUMBER))
    result = PassManager([both, FOLD]).run(graph(), CONTEXT)
    assert result.graph.notes.keys == {SHAPE}


def test_a_pass_cannot_lose_the_notes_of_others() -> None:
    forget = make("forget", lambda g, c: PassResult(g.with_notes(Notes())))
    assert PassManager([MEASURE, forget]).run(graph(), CONTEXT).graph.notes[NUMBER] == {"fc": Fact(1)}


def test_what_a_pass_provides_survives_its_own_changes() -> None:
    def work(g: Graph, ctx: PassContext) -> PassResult:
        return noting(NUMBER, value=7)(graph(2.0), ctx)

    again = make("again", work, changes=Aspect.WEIGHTS, provides=(NUMBER,))
    assert PassManager([MEASURE, again]).run(graph(), CONTEXT).graph.notes[NUMBER] == {"fc": Fact(7)}


def broken_graph(g: Graph, ctx: PassContext) -> PassResult:
    return PassResult(replace(g, outputs=(replace(g.outputs[0], value="gone"),)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (make("a", FOLD.run), "pass a promises to change nothing, but returned another graph"),
        (
            make("b", FOLD.run, changes=Aspect.STRUCTURE),
            "pass b promises to keep the weights, but changed the constant 'fc.w'",
        ),
        (
            make("c", lambda g, c: PassResult(graph(lo=-1.0)), changes=Aspect.WEIGHTS),
            "pass c promises to keep the structure, but changed it",
        ),
        (make("d", provides=(NUMBER,)), "pass d promises the note 'number', but did not make it"),
        (make("e", noting(NUMBER)), "pass e made the note 'number', which it does not say it provides"),
        (make("f", levels=FLOAT_TO_INT), "pass f promises level int, but returned level float"),
        (
            make("g", broken_graph, changes=Aspect.STRUCTURE),
            "pass g returned a graph that breaks the rules: output 'y' shows 'gone', which does not exist",
        ),
        (make("h", lambda g, c: g), "pass h returned Graph, not a PassResult"),  # type: ignore[arg-type,return-value]
    ],
)  # fmt: skip
def test_a_broken_promise_is_addressed_to_the_author(broken: Pass, message: str) -> None:
    with pytest.raises(PassContractError) as error:
        PassManager([broken]).run(graph(), CONTEXT)
    assert error.value.message == message
    assert error.value.hint is not None
    assert type(broken).__module__ in error.value.hint


def test_a_note_of_others_cannot_be_altered() -> None:
    with pytest.raises(PassContractError, match="made the note 'number'"):
        PassManager([MEASURE, make("alter", noting(NUMBER, value=2))]).run(graph(), CONTEXT)


def test_an_exception_says_where_it_was_raised() -> None:
    def fail(g: Graph, ctx: PassContext) -> PassResult:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        PassManager([MEASURE, make("fail", fail)]).run(graph(), CONTEXT)
    assert error.value.__notes__ == ["raised in step 2 of the pipeline, fail"]


def test_reports_and_program() -> None:
    program = Program(int_graph(), (), {}, 64)
    lower = make("lower", lambda g, c: PassResult(g, program=program), levels=ON_INT)
    seen: list[Program | None] = []
    emit = make("emit", lambda g, c: PassResult(seen.append(c.program) or g), levels=ON_INT, needs=("program",))
    result = PassManager([lower, emit, emit]).run(int_graph(), CONTEXT)
    assert result.program is program
    assert seen == [program, program]
    assert list(result.reports) == ["lower", "emit", "emit#2"]
    again = make("change", lambda g, c: PassResult(int_graph(1)), levels=ON_INT, changes=Aspect.STRUCTURE)
    assert PassManager([lower, again]).run(int_graph(), CONTEXT).program is None


def test_timing_and_log(caplog: pytest.LogCaptureFixture) -> None:
    timing = Timing()
    with caplog.at_level(logging.DEBUG, "qcompile"):
        PassManager([MEASURE, SOLVE], [timing, Logging()]).run(graph(), CONTEXT)
    assert [name for name, _ in timing.seconds] == ["measure", "solve"]
    assert all(seconds >= 0 for _, seconds in timing.seconds)
    assert "measure: skipped fc: not now" in caplog.messages


def test_dump_writes_numbered_files_that_read_back(tmp_path: Path) -> None:
    result = PassManager([MEASURE, FOLD], [Dump(tmp_path / "dump")]).run(graph(), CONTEXT)
    files = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert files == ["00-input.qir", "01-measure.notes.json", "01-measure.qir", "02-fold.qir"]
    text = (tmp_path / "dump" / "02-fold.qir").read_text(encoding="utf-8")
    assert same_graph(from_text(text), result.graph)
    first = (tmp_path / "dump" / "01-measure.qir").read_text(encoding="utf-8")
    assert first == to_text(graph()) + "# done: noted\n# refused: fc: not now\n"
    notes = json.loads((tmp_path / "dump" / "01-measure.notes.json").read_text(encoding="utf-8"))
    assert notes == {"number": {"fc": {"value": 1}}}


def changing(to: Graph, preserves: Preserves) -> Pass:
    everything = Aspect.STRUCTURE | Aspect.WEIGHTS
    levels = Levels(to.level, to.level)
    return make("change", lambda g, c: PassResult(to), levels=levels, changes=everything, preserves=preserves)


def test_passes_are_held_to_what_they_preserve() -> None:
    from qcompile.exec import float_exec
    from qcompile.semantics import interp

    keeps = KeepsFunction(float_exec.run, interp.run)

    def run(first: Graph, pass_: Pass) -> None:
        PassManager([pass_], [keeps]).run(first, CONTEXT)

    run(graph(), changing(graph(1.00001), Close(1e-3)))
    run(graph(), changing(graph(2.0), Nothing("doubles")))
    run(int_graph(), changing(replace(int_graph(), name="renamed"), Exact()))
    with pytest.raises(PassContractError, match=r"pass change promises to keep the function \(Close\(rtol=0.001\)\)"):
        run(graph(), changing(graph(1.1), Close(1e-3)))
    with pytest.raises(PassContractError, match=r"\d of 6 elements of the output 'y' differ"):
        run(int_graph(), changing(int_graph(zp=255), Exact()))
