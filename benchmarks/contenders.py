"""Who is compared: an engine, the file it runs, and what it may use of the processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

VNNI = "AVX512_CORE_VNNI"
BF16 = "AVX512_CORE_BF16"


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: of the row.
        engine: a key of `benchmarks.engines.ENGINES`.
        model: file in the network's folder (`benchmarks.prepare`).
        precision: of what is not quantised (OpenVINO).
        isa: cap of oneDNN's instruction sets (OpenVINO).
        amx: whether the engine may use AMX; a row with it only exists where the processor has AMX.
        needs: instruction set without which the row is pointless.
        instead: file that is run where `model` could not be made; the table says so.
    """

    name: str
    engine: str
    model: str
    precision: str = "f32"
    isa: str | None = None
    amx: bool = False
    needs: str | None = None
    instead: str | None = None

    def find(self, folder: Path) -> Path | None:
        """The file to run among those that were made, or None."""
        paths = [folder / name for name in (self.model, self.instead) if name is not None]
        return next((path for path in paths if path.exists()), None)

    @property
    def is_ours(self) -> bool:
        return self.engine.startswith("qcompile")

    @property
    def is_int8_peer(self) -> bool:
        return "int8" in self.name and not self.is_ours

    @property
    def environment(self) -> Mapping[str, str]:
        return {} if self.isa is None else {"ONEDNN_MAX_CPU_ISA": self.isa}


PEAK = Contender("peak", "peak", "", needs="avx512_vnni")

CONTENDERS = (
    Contender("qcompile w8a8", "qcompile", "w8a8.qc"),
    Contender("qcompile w8a8, float in and out", "qcompile-float", "w8a8.qc"),
    Contender("qcompile w8a8 + amx", "qcompile", "w8a8-amx.qc", amx=True, needs="amx_int8"),
    Contender("qcompile 70 %", "qcompile", "budget.qc"),
    Contender("qcompile fastest", "qcompile", "fastest.qc"),
    Contender("qcompile 70 % + amx", "qcompile", "budget-amx.qc", amx=True, needs="amx_int8"),
    Contender("qcompile fastest + amx", "qcompile", "fastest-amx.qc", amx=True, needs="amx_int8"),
    Contender("onnxruntime fp32", "onnxruntime", "fixed.onnx"),
    Contender("onnxruntime int8 qdq", "onnxruntime", "qdq.onnx"),
    Contender("onnxruntime int8 qoperator", "onnxruntime", "qoperator.onnx"),
    Contender("openvino fp32", "openvino", "fixed.onnx", isa=VNNI),
    Contender("openvino bf16", "openvino", "fixed.onnx", "bf16", BF16, needs="avx512_bf16"),
    Contender("openvino int8", "openvino", "nncf.xml", isa=VNNI, instead="qdq.onnx"),
    Contender("onnxruntime int8 qdq + amx", "onnxruntime", "qdq.onnx", amx=True, needs="amx_int8"),
    Contender("openvino bf16 + amx", "openvino", "fixed.onnx", "bf16", amx=True, needs="amx_bf16"),
    Contender("openvino int8 + amx", "openvino", "nncf.xml", amx=True, needs="amx_int8", instead="qdq.onnx"),
)


CAPPED = {
    "avx2": (
        Contender("qcompile w8a8", "qcompile", "avx2-w8a8.qc"),
        Contender("qcompile w8a8, float in and out", "qcompile-float", "avx2-w8a8.qc"),
        Contender("qcompile w4a4", "qcompile", "avx2-w4a4.qc"),
        Contender("openvino fp32", "openvino", "fixed.onnx", isa="AVX2"),
        Contender("openvino int8", "openvino", "nncf.xml", isa="AVX2", instead="qdq.onnx"),
        # onnxruntime has no switch: its rows show what it does with all the processor offers but AMX.
        Contender("onnxruntime qdq, not capped", "onnxruntime", "qdq.onnx"),
    )
}
"""Rows for processors with less than this one: `--isa` of the latency benchmark → rows."""

PRECISIONS = {"avx2": ("w8a8", "w4a4")}
"""Uniform precisions of our artifacts for those."""

PLANNED = frozenset({"budget.qc", "fastest.qc", "budget-amx.qc", "fastest-amx.qc"})
"""Artifacts that only `--plans` makes."""


def chosen(flags: Iterable[str], names: Iterable[str] = (), isa: str | None = None) -> list[Contender]:
    """The rows that make sense on a processor with these features; of them those whose names start as given.

    Args:
        isa: a key of `CAPPED`, or None for all the processor offers.
    """
    have, starts = set(flags), tuple(names)
    return [
        c
        for c in (CONTENDERS if isa is None else CAPPED[isa])
        if (c.needs is None or c.needs in have) and (not starts or c.is_ours or c.name.startswith(starts))
    ]
