"""What an OpenVINO model finds for each class: `python -m benchmarks.openvino_answers MODEL.xml DATA.npz OUT.npz`.

Runs in the peers' environment.  OUT.npz gets `scores`, (n, classes), and `report`, JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer; what is not quantised is computed in float32."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openvino_answers", description=(__doc__ or "")[:80])
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(options.model), "CPU", settings)
    port = compiled.inputs[0].get_any_name()
    with np.load(options.data) as data:
        x = data[port]
    found = []
    for start in range(0, len(x), BATCH):
        scores = compiled({port: x[start : start + BATCH]})[0]
        found.append(scores.reshape(len(scores), -1))
    np.savez(options.out, scores=np.concatenate(found), report=json.dumps({"openvino": openvino.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
