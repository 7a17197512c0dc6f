"""Recipes: what makes the parameters that a kernel reads from a graph's arrays.

A built library records a recipe for each pointer it reads, not the packed bytes: the artifact stores every
constant once, and loading packs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np

from qcompile.errors import ArtifactError
from qcompile.ir import Array
from targets._tvm import packing, packing_split


@dataclass(frozen=True)
class Recipe:
    """`name` of a function in RECIPES, the graph constants it is given, and its plain parameters."""

    name: str
    constants: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    def _made(self, arrays: Mapping[str, Array], **more: Array) -> Array:
        return RECIPES[self.name](*[arrays[c] for c in self.constants], **self.params, **more)

    def pack(self, arrays: Mapping[str, Array]) -> Array:
        return np.ascontiguousarray(self._made(arrays))

    def pack_into(self, arrays: Mapping[str, Array], room: Array) -> int:
        """Pack into the first of so many bytes; returns how many."""
        if self.name in IN_PLACE:
            made = self._made(arrays, room=room)
        else:
            made = self.pack(arrays)
            room[: made.nbytes] = made.reshape(-1).view(np.uint8)
        return made.nbytes

    def to_json(self) -> list[Any]:
        return [self.name, list(self.constants), dict(self.params)]

    @staticmethod
    def from_json(described: Sequence[Any]) -> Recipe:
        """Raises ArtifactError for a recipe of another version; a function whose bytes change gets another name."""
        name, constants, params = described
        try:
            signature(RECIPES[name]).bind(*constants, **params)
        except (KeyError, TypeError):
            given = ", ".join([f"{len(constants)} arrays", *params])
            raise ArtifactError(
                f"another version of qcompile wrote this library: its parameters are packed by {name}({given})",
                hint="compile the model again",
            ) from None
        return Recipe(name, tuple(constants), params)


RECIPES: Mapping[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        packing.plain,
        packing.literal,
        packing.vector,
        packing.columns,
        packing.zeros,
        packing.lane_table,
        packing.depthwise,
        packing.quads,
        packing.segment_table,
        packing.direct,
        packing.direct_gathered,
        packing.direct_half,
        packing.tiles,
        packing.nibble_tiles,
        packing.matrix,
        packing.shifted_bias,
        packing.shifted_segments,
        packing.winograd_weights,
        packing.winograd_start,
        packing.winograd_inline_weights,
        packing_split.pair_heads,
        packing_split.pair_rests,
        packing_split.pair_offsets,
        packing_split.pair_starts,
        packing_split.window_weights,
        packing_split.window_table,
    )
}

IN_PLACE = {packing.winograd_weights.__name__}
"""Recipes whose results are so large that they are made where they are to lie: their functions take `room`."""
