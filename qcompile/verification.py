"""The two promises of an artifact, checked: no floating point inside, and the reference's integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qcompile.artifact import Artifact
from qcompile.data import LABELS, load_batches
from qcompile.errors import VerificationError
from qcompile.target.program import Program


def lower_again(artifact: Artifact) -> Program:
    """The program an artifact was built from, made again from its integer graph and its manifest."""
    from passes.lower.plan_memory import plan_program

    program = plan_program(artifact.graph.held(), artifact.target)
    variants = artifact.manifest.record.kernels
    kernels = tuple(replace(kernel, variant=variants[kernel.name]) for kernel in program.kernels)
    return replace(program, kernels=kernels)


def verify_artifact(artifact: Artifact, data: Any = None) -> dict[str, Any]:
    """Scan for floating-point operations and compare outputs with the reference, integer by integer.

    Args:
        data: calibration-like data in the model's own units; the artifact's golden inputs are always compared.

    Returns:
        inputs: samples compared; differing_integers: outputs that are not the reference's; float_operations: how many
        were found in TIR and machine code; found: the first twenty of them.
    """
    found = artifact.backend.float_operations(artifact.library, lower_again(artifact))
    inputs, differing = _compare(artifact, dict(artifact.golden_inputs))
    golden = artifact.reference_int(artifact.golden_inputs)
    for name, expected in artifact.golden_outputs.items():
        differing += int(np.count_nonzero(golden[name] != expected))
    if data is not None:
        for batch in load_batches(data, artifact.graph.inputs)():
            reals = {name: array for name, array in batch.items() if name != LABELS}
            count, bad = _compare(artifact, artifact.quantize(reals))
            inputs, differing = inputs + count, differing + bad
    return {
        "inputs": inputs, "differing_integers": differing, "float_operations": len(found), "found": found[:20]
    }  # fmt: skip


def _compare(artifact: Artifact, integers: dict[str, Any]) -> tuple[int, int]:
    got, want = artifact.run_int(integers), artifact.reference_int(integers)
    differing = 0
    for name, expected in want.items():
        if got[name].shape != expected.shape or got[name].dtype != expected.dtype:
            raise VerificationError(
                f"output {name!r} is {got[name].dtype}{got[name].shape}, the reference gives "
                f"{expected.dtype}{expected.shape}"
            )
        differing += int(np.count_nonzero(got[name] != expected))
    return len(next(iter(integers.values()))), differing
