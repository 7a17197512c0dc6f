"""The intermediate representation: a typed immutable graph with a float and an integer level.  NumPy only."""

from qcompile.ir.graph import Graph, GraphBuilder, Grid, Input, Node, Output, array_hash, rebuild
from qcompile.ir.notes import Aspect, NoteKey, Notes
from qcompile.ir.ops import FLOAT, GRID_KEEPING, INT, MOVEMENT, OPS, WEIGHTED, Attrs, OpDef
from qcompile.ir.types import BATCH, Array, TensorType, bits_of, int_range, storage
from qcompile.ir.verify import verify

__all__ = [
    "BATCH",
    "FLOAT",
    "GRID_KEEPING",
    "INT",
    "MOVEMENT",
    "OPS",
    "WEIGHTED",
    "Array",
    "Aspect",
    "Attrs",
    "Graph",
    "GraphBuilder",
    "Grid",
    "Input",
    "Node",
    "NoteKey",
    "Notes",
    "OpDef",
    "Output",
    "TensorType",
    "array_hash",
    "bits_of",
    "int_range",
    "rebuild",
    "storage",
    "verify",
]
