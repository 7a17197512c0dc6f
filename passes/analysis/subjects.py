"""What a plan chooses: the bits of each layer's weights, and of each grid group that layers read.

As subjects of notes they are "w:<layer>" and "a:<group>".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.analysis.candidate_weights import CandidateWeights
from passes.analysis.layer_inputs import separate_layer_inputs
from passes.structure import Structure
from qcompile.exec.torch_variants import Variant
from qcompile.ir import GRID_KEEPING, Graph, Grid, Notes
from qcompile.pm.facts import INTERACTIONS, RANGES, SENSITIVITY, BitChoice, Interactions, Range, Sensitivity
from qcompile.semantics.grids import activation_grid

Float = NDArray[np.float64]

STORED_BITS = 8
"""Width of stored values that not only layers read, as in `integerize`."""

WEIGHTS, ACTIVATIONS = "w:", "a:"


@dataclass(frozen=True, slots=True)
class Choice:
    """One subject at one width."""

    subject: str
    bits: int

    @property
    def of_weights(self) -> bool:
        return self.subject.startswith(WEIGHTS)

    @property
    def name(self) -> str:
        """The layer or the grid group."""
        return self.subject[2:]


def choices_of(structure: Structure, weight_bits: Sequence[int], act_bits: Sequence[int]) -> list[Choice]:
    """All choices: layers in execution order, then groups; each with its widths ascending."""
    weights = [Choice(WEIGHTS + layer, bits) for layer in structure.layers for bits in sorted(weight_bits)]
    return weights + [Choice(ACTIVATIONS + g, bits) for g in structure.tied() for bits in sorted(act_bits)]


def chosen_by(structure: Structure, plan: Mapping[str, BitChoice]) -> list[Choice]:
    """The choices a plan (by layer) makes."""
    groups = {group: plan[layers[0]].a for group, layers in structure.tied().items()}
    weights = [Choice(WEIGHTS + layer, plan[layer].w) for layer in structure.layers]
    return weights + [Choice(ACTIVATIONS + group, bits) for group, bits in groups.items()]


def tabulate(choices: Sequence[Choice], loss: Float, error: Float, method: str) -> dict[str, Sensitivity]:
    """The note of sensitivities from losses and standard errors in the order of the choices."""
    table = {}
    for subject in dict.fromkeys(choice.subject for choice in choices):
        rows = [i for i, choice in enumerate(choices) if choice.subject == subject]
        means = {choices[i].bits: float(loss[i]) for i in rows}
        table[subject] = Sensitivity(means, {choices[i].bits: float(error[i]) for i in rows}, method)
    return table


def interactions(choices: Sequence[Choice], matrix: Float, method: str) -> Interactions:
    """The note of inter-layer terms: the matrix with zeros within one subject, exactly symmetric."""
    subjects = tuple(choice.subject for choice in choices)
    names = np.array(subjects)
    between = np.where(names[:, None] == names[None, :], 0.0, (matrix + matrix.T) / 2)
    return Interactions(subjects, tuple(choice.bits for choice in choices), between, method)


def with_pairs(
    notes: Notes, choices: Sequence[Choice], loss: Float, error: Float, between: Float, method: str, *, diagonal: bool
) -> Notes:
    """The notes with inter-layer terms, and with sensitivities where there were none or `diagonal` replaces them."""
    if diagonal or not notes.get(SENSITIVITY):
        notes = notes.with_table(SENSITIVITY, tabulate(choices, loss, error, method))
    return notes.with_table(INTERACTIONS, {"": interactions(choices, between, method)})


class Rounder:
    """Makes choices into variants of the float graph, as `integerize` will round.

    Attributes:
        graph: the view in which layers' inputs have names of their own (see `layer_inputs`).
        structure: of the canonical graph.
        weights: rounded weights.
    """

    def __init__(self, graph: Graph) -> None:
        self.structure = Structure(graph)
        view = separate_layer_inputs(graph, self.structure)
        self.graph, self.read_as = view.graph, view.read_as
        self.copies = view.copies
        self.ranges = graph.notes[RANGES]
        self.weights = CandidateWeights(graph)

    def variant(self, choices: Sequence[Choice]) -> Variant:
        """The network with only these choices rounded."""
        consts = {c.name: self.weights(c.name, c.bits) for c in choices if c.of_weights}
        grids: dict[str, Grid] = {}
        for choice in choices:
            if not choice.of_weights:
                grids |= group_grids(self.structure, self.copies, self.ranges, choice.name, choice.bits)
        return Variant(consts, grids)


def rounding_grids(
    structure: Structure, copies: Mapping[str, str], ranges: Mapping[str, Range], bits: Mapping[str, BitChoice]
) -> dict[str, Grid]:
    """The grid on which each value is rounded under a plan (by layer).

    Args:
        structure: of the graph.
        copies: name of a copy that only layers read → the value it is of.
        ranges: by grid group.
    """
    found: dict[str, Grid] = {}
    tied = structure.tied()
    for group in structure.members:
        own = bits[tied[group][0]].a if group in tied else STORED_BITS
        found |= group_grids(structure, copies, ranges, group, own)
    return found


def group_grids(
    structure: Structure, copies: Mapping[str, str], ranges: Mapping[str, Range], group: str, own: int
) -> dict[str, Grid]:
    """The grids of one group's values (and layers' copies of them) where its layers read `own` bits."""
    if group in structure.wide:
        return {}
    members, clip = structure.members[group], ranges[group].clip
    stored = STORED_BITS if group in structure.shared else own
    found = {v: activation_grid(*clip[stored], stored) for v in members if not _keeps_grid(structure, v)}
    if stored != own:
        found |= {c: activation_grid(*clip[own], own) for c, value in copies.items() if value in members}
    return found


def _keeps_grid(structure: Structure, value: str) -> bool:
    """Whether a value is a selection of values that are on its grid already."""
    region = structure.regions.get(value)
    if region is None or region.anchor.op not in GRID_KEEPING - {"pad"}:
        return False
    return all(structure.group_of[v] == structure.group_of[value] for v in region.anchor.inputs)
