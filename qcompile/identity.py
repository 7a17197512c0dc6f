"""The same integers everywhere: one integer graph, built for every target and run wherever this machine can."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcompile.artifact import Artifact
from qcompile.errors import DeviceError, TargetError
from qcompile.ir import Array, Graph
from qcompile.pm.registry import find_backend, find_target, host_features, target_names
from qcompile.semantics import interp
from qcompile.target.model import Target, host_architecture


@dataclass(frozen=True)
class Outcome:
    """What became of one target.

    Attributes:
        target: its name.
        compared: integers of the outputs that were compared; 0 where it could not be run.
        differing: those that are not the reference's.
        why: why it was not compiled or not run; empty where it was.
    """

    target: str
    compared: int = 0
    differing: int = 0
    why: str = ""

    @property
    def identical(self) -> bool:
        """Whether it ran, and every integer was the reference's."""
        return self.compared > 0 and self.differing == 0

    def __str__(self) -> str:
        if self.why:
            return self.why
        return (
            f"{self.compared} integers identical" if self.identical else f"{self.differing} of {self.compared} DIFFER"
        )


def compare_targets(
    graph: Graph, inputs: Mapping[str, Array], targets: Iterable[str] | None = None
) -> tuple[Outcome, ...]:
    """Build an integer graph for each target and compare what it computes with the reference.

    Args:
        graph: an integer graph.
        inputs: integer arrays (n, …) by input name.
        targets: names; every known target where not given.
    """
    expected = interp.run(graph, inputs)
    ordered = [np.ascontiguousarray(inputs[port.name]) for port in graph.inputs]
    wanted = [expected[out.name] for out in graph.outputs]
    return tuple(_compare(find_target(name), graph, ordered, wanted) for name in targets or target_names())


def compare_artifact(artifact: Artifact, targets: Iterable[str] | None = None) -> tuple[Outcome, ...]:
    """`compare_targets` of an artifact's integer graph and golden inputs."""
    return compare_targets(artifact.graph, artifact.golden_inputs, targets)


def _compare(target: Target, graph: Graph, inputs: Sequence[Array], wanted: Sequence[Array]) -> Outcome:
    from passes.lower.plan_memory import plan_program

    backend = find_backend(target)
    program = plan_program(graph, target)
    kernels = tuple(replace(k, variant=backend.variants(k, program)[0]) for k in program.kernels)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as scratch:
        folder = Path(scratch)
        try:
            backend.build(replace(program, kernels=kernels), folder)
        except TargetError as error:
            return Outcome(target.name, why=f"not compiled: {error.message}")
        foreign = target.architecture not in ("", host_architecture())
        if not foreign and (lacks := sorted(set(target.features) - host_features())):
            return Outcome(target.name, why=f"compiled, not run: this processor lacks {', '.join(lacks)}")
        try:
            results = backend.load(folder, graph).run(inputs)
        except (DeviceError, TargetError) as error:
            return Outcome(target.name, why=f"compiled, not run: {error.message}")
    pairs = list(zip(results, wanted, strict=True))
    differing = sum(
        int(np.count_nonzero(got != right)) if got.shape == right.shape else right.size for got, right in pairs
    )
    return Outcome(target.name, sum(right.size for _, right in pairs), differing)
