"""Medians, ratios, shares and tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS, Contender, chosen
from benchmarks.report import Result, Row, format_result, format_summary, ratio, table, to_json

BY_NAME = {c.name: c for c in CONTENDERS}


def row(name: str, *milliseconds: float, amx: bool = False) -> Row:
    return Row(BY_NAME[name], [t * 1e-3 for t in milliseconds], amx)


@pytest.fixture
def result() -> Result:
    rows = [
        row("qcompile w8a8", 1.0, 2.0, 1.0),
        row("qcompile w8a8, float in and out", 1.5, 3.0, 1.5),
        row("onnxruntime fp32", 0.5, 0.5, 0.5),
        row("onnxruntime int8 qdq", 4.0, 4.0, 4.0),
        row("openvino int8", 2.0, 4.0, 2.0),
        row("openvino int8 + amx", 0.5, 0.5, 0.5, amx=True),
    ]
    return Result("net", 2, 100_000_000, rows, peak_gops=[200.0, 200.0, 100.0], load=[0.5, 1.25], others=0.25)


def test_best_peer_is_the_fastest_int8_engine_and_amx_is_counted_apart(result: Result) -> None:
    vnni, any_ = result.best_peer(amx=False), result.best_peer(amx=True)
    assert vnni is not None and vnni.contender.name == "openvino int8"
    assert any_ is not None and any_.contender.name == "openvino int8 + amx"


def test_what_a_process_holds_decides_not_what_its_row_is_called(result: Result) -> None:
    result.rows[4].amx = True
    peer = result.best_peer(amx=False)
    assert peer is not None and peer.contender.name == "onnxruntime int8 qdq"


def test_ratio_compares_round_by_round(result: Result) -> None:
    # Both were twice as slow in the second round: the machine, not the engine.
    assert ratio(result.rows[0], result.best_peer(amx=False)) == pytest.approx(0.5)
    assert ratio(result.rows[0], result.best_peer(amx=True)) == pytest.approx(2.0)


def test_no_ratio_without_a_peer_or_without_times(result: Result) -> None:
    alone = replace(result, rows=result.rows[:3])
    assert alone.best_peer(amx=True) is None
    assert ratio(alone.rows[0], None) is None
    assert ratio(row("qcompile w8a8"), result.rows[4]) is None


def test_share_of_peak_counts_all_cores(result: Result) -> None:
    # 0.2 G operations in 1 ms are 200 GOPS; two cores can do 400.
    assert result.share_of_peak(result.rows[0]) == pytest.approx(0.5)
    assert replace(result, peak_gops=[]).share_of_peak(result.rows[0]) is None


def test_table_aligns_figures_to_the_right() -> None:
    assert table([("name", "ms", "note"), ("a", "10.5", ""), ("long name", "-", "3x3")]) == (
        "| name      |   ms | note |\n"
        "|-----------|-----:|------|\n"
        "| a         | 10.5 |      |\n"
        "| long name |    - | 3x3  |"
    )


def test_result_shows_rows_that_did_not_run(result: Result) -> None:
    missing = row("openvino bf16")
    missing.note = "No module named 'openvino'"
    text = format_result(replace(result, rows=[*result.rows, missing]))
    assert "net, 2 threads, 100.0 M multiply-adds, peak 200 GOPS a core, others used 0.25 CPUs" in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    ours = [cell.strip() for cell in lines["qcompile w8a8"].split("|")]
    assert ours[2:7] == ["1.000", "50 %", "0.50", "2.00", "50 %"]
    assert "best int8 peer" in lines["openvino int8"]
    assert "No module named" in lines["openvino bf16"]


def test_summary_has_a_line_for_each_network(result: Result) -> None:
    lines = format_summary([result, replace(result, network="other", rows=result.rows[2:])]).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["net", "2", "1.000", "2.000", "0.50", "0.75", "-", "-", "-", "openvino int8"]


def test_json_holds_conditions_rounds_and_ratios(result: Result) -> None:
    read = json.loads(json.dumps(to_json({"cpu": "a cpu"}, [result])))
    assert read["conditions"] == {"cpu": "a cpu"}
    ours = read["results"][0]["rows"][0]
    assert ours["contender"]["name"] == "qcompile w8a8"
    assert ours["seconds"] == [1e-3, 2e-3, 1e-3]
    assert ours["ratio"] == {"vnni": pytest.approx(0.5), "any": pytest.approx(2.0)}


def test_rows_need_the_instructions_they_are_about() -> None:
    assert not [c for c in chosen({"avx512_vnni"}) if c.amx or "bf16" in c.name]
    assert [c.name for c in chosen({"amx_int8"}, ["openvino int8"]) if not c.is_ours] == [
        "openvino int8", "openvino int8 + amx"
    ]  # fmt: skip


def test_a_model_that_was_not_made_may_have_a_stand_in(tmp_path: Path) -> None:
    row = BY_NAME["openvino int8"]
    assert row.find(tmp_path) is None
    (tmp_path / "qdq.onnx").touch()
    assert row.find(tmp_path) == tmp_path / "qdq.onnx"
    (tmp_path / "nncf.xml").touch()
    assert row.find(tmp_path) == tmp_path / "nncf.xml"
    assert BY_NAME["openvino fp32"].find(tmp_path) is None


def test_rows_without_amx_are_capped() -> None:
    def is_capped(c: Contender) -> bool:
        return c.engine != "openvino" or "ONEDNN_MAX_CPU_ISA" in c.environment

    assert all(is_capped(c) != c.amx or c.engine != "openvino" for c in CONTENDERS)
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)


def test_summary_has_our_other_rows_where_there_are_any(result: Result) -> None:
    def cells() -> list[str]:
        return [cell.strip() for cell in format_summary([result]).splitlines()[2].split("|")[3:-2]]

    assert cells() == ["1.000", "2.000", "0.50", "0.75", "-", "-", "-"]
    result.rows.append(row("qcompile w8a8 + amx", 0.25, 0.25, 0.25, amx=True))
    result.rows.append(row("qcompile fastest", 0.5, 1.0, 0.5))
    result.rows.append(row("qcompile fastest + amx", 0.1, 0.1, 0.1, amx=True))
    assert cells() == ["1.000", "2.000", "0.50", "0.75", "0.25", "0.50", "0.20"]


def test_memory_is_what_the_model_added(result: Result) -> None:
    ours = result.rows[0]
    assert ours.mebibytes is None
    ours.facts = {"memory": {"before": 10 << 20, "now": 20 << 20, "peak": 33 << 20}}
    assert ours.mebibytes == 23.0
    assert "MiB" in format_result(result).splitlines()[2]


def test_less_than_the_processor_offers_compares_with_peers_held_to_it() -> None:
    rows = chosen({"avx512_vnni", "amx_int8"}, isa="avx2")
    assert {c.model for c in rows if c.is_ours} == {"avx2-w8a8.qc", "avx2-w4a4.qc"}
    assert all(c.isa == "AVX2" for c in rows if c.engine == "openvino")
    assert any(c.is_int8_peer for c in rows)
