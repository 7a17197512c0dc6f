"""The evaluation pack's feed-forward networks on the Arm targets, under QEMU: the integers of the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_pack_networks import LARGE, NETWORKS, PACK, data

from qcompile import api
from qcompile.identity import compare_targets
from qcompile.ir import Array

pytestmark = pytest.mark.skipif(
    not (PACK / "load.py").exists(), reason="the evaluation pack ../shared/data is not here"
)

TARGETS = ("aarch64-neon", "aarch64-dotprod", "aarch64-i8mm", "arm-neon")
TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "qemu-arm", "arm-linux-gnueabihf-gcc")


def integers(network: str, folder: Path, bits: str, samples: int, inputs: int) -> tuple[object, dict[str, Array]]:
    """The integer graph of a network, and integer inputs: real ones where the pack has some, and one of extremes."""
    calib = data(network, "calib", samples)
    if calib is not None:
        calib.pop("labels", None)
    made = api.compile(
        PACK / "models" / f"{network}.onnx", target="reference", uniform=bits, calib=calib, out=folder / "model.qc",
        measure=False, samples=None if calib is not None else samples,
    )  # fmt: skip
    goldens = made.artifact.golden_inputs
    # The last golden sample holds nothing but the ends of the grid.
    return made.artifact.graph, {name: x[-inputs:] for name, x in goldens.items()}


def check(network: str, folder: Path, bits: str, targets: tuple[str, ...], inputs: int) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not here: {', '.join(missing)} (Debian packages qemu-user, gcc-aarch64-linux-gnu, "
                    "gcc-arm-linux-gnueabihf)")  # fmt: skip
    graph, batch = integers(network, folder, bits, 4, inputs)
    outcomes = compare_targets(graph, batch, targets)  # type: ignore[arg-type]
    assert [(o.target, str(o)) for o in outcomes if not o.identical] == []
    size = sum(int(np.prod(graph.type_of(o.value).sample)) for o in graph.outputs)  # type: ignore[attr-defined]
    assert {o.compared for o in outcomes} == {size * inputs}


@pytest.mark.parametrize("network", NETWORKS)
def test_arm_gives_the_reference(network: str, tmp_path: Path) -> None:
    check(network, tmp_path, "w8a8", TARGETS, 1 if network in LARGE else 2)


@pytest.mark.parametrize("bits", ["w4a6", "w2a4"])
def test_arm_gives_the_reference_at_few_bits(bits: str, tmp_path: Path) -> None:
    check("mlperf_tiny_resnet8_cifar10", tmp_path, bits, TARGETS, 2)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["w8a8", "w4a6"])
@pytest.mark.parametrize("network", NETWORKS)
def test_arm_gives_the_reference_everywhere(network: str, bits: str, tmp_path: Path) -> None:
    check(network, tmp_path, bits, TARGETS, 4)
