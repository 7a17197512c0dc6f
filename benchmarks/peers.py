"""Quantise a model for the peers: `python -m benchmarks.peers qdq|qoperator|nncf MODEL.onnx CALIB.npz OUT`.

Runs in the peers' environment.  Always uint8 activations, int8 weights per output channel, minimum and maximum.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def samples(calib: Path) -> Iterator[dict[str, Any]]:
    """One sample after the other, with a batch dimension, by input name."""
    with np.load(calib) as data:
        arrays = {name: data[name] for name in data.files}
    for i in range(len(next(iter(arrays.values())))):
        yield {name: array[i : i + 1] for name, array in arrays.items()}


def quantize_onnxruntime(model: Path, calib: Path, out: Path, kind: str) -> None:
    """onnxruntime's static quantisation, after its own preparation (which folds batch normalisations)."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        """The samples, as onnxruntime wants them."""

        def __init__(self) -> None:
            self._rest = samples(calib)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._rest, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        ort.quant_pre_process(str(model), prepared, skip_symbolic_shape=True)
        ort.quantize_static(
            prepared, str(out), Reader(), per_channel=True, activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            quant_format=ort.QuantFormat.QDQ if kind == "qdq" else ort.QuantFormat.QOperator,
        )  # fmt: skip


def quantize_nncf(model: Path, calib: Path, out: Path) -> None:
    """NNCF's post-training quantisation of the OpenVINO model."""
    nncf: Any = importlib.import_module("nncf")
    openvino: Any = importlib.import_module("openvino")
    quantized = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(list(samples(calib))))
    openvino.save_model(quantized, out, compress_to_fp16=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantise one model one way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=("qdq", "qoperator", "nncf"))
    for name in ("model", "calib", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    if options.kind == "nncf":
        quantize_nncf(options.model, options.calib, options.out)
    else:
        quantize_onnxruntime(options.model, options.calib, options.out, options.kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
