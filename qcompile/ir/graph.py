"""The typed, immutable SSA graph that every stage of qcompile works on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.errors import GraphError
from qcompile.ir.notes import Notes
from qcompile.ir.ops import OPS, Attrs, AttrValue
from qcompile.ir.types import Array, TensorType

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True)
class Grid:
    """How integers stand for reals: real = scale · (integer − zero); scale is per tensor."""

    scale: float
    zero: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Input:
    """A graph input; on the integer level `grid` says how the host quantises it."""

    name: str
    type: TensorType
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A graph output: its public name, the value it shows, and on the integer level its grid."""

    name: str
    value: str
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and its single output value, which has the node's name.

    Attributes:
        name: unique in the graph; for a layer the path it has in the source model.
        op: key of `qcompile.ir.ops.OPS`.
        inputs: names of the values it reads (graph inputs or nodes before it).
        consts: (role, constant name) pairs, such as ("w", "conv1.w").
        attrs: complete, checked attributes.
        type: shape and dtype of the output value.
        origin: the source's name, then the passes that made the node what it is.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    consts: tuple[tuple[str, str], ...]
    attrs: Attrs
    type: TensorType
    origin: tuple[str, ...] = ()

    def const(self, role: str) -> str | None:
        """The constant's name in a role, or None."""
        return dict(self.consts).get(role)


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order, the constants they read, and what analyses noted about them.

    `tail` is the host's output function: a float graph of what follows the last integer value (softmax, say);
    its inputs carry the names of this graph's outputs.
    """

    name: str
    level: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    consts: Mapping[str, Array]
    notes: Notes = field(default_factory=Notes)
    tail: Graph | None = None

    def __post_init__(self) -> None:
        # A mapping of another kind brings its arrays when they are asked for, and is read-only by itself.
        if isinstance(self.consts, dict | MappingProxyType):
            object.__setattr__(self, "consts", MappingProxyType(dict(self.consts)))

    def held(self) -> Graph:
        """The same with all constants in memory, where a mapping brings them one by one."""
        return replace(self, consts=dict(self.consts))

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return MappingProxyType({node.name: node for node in self.nodes})

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Value name → the nodes that read it, in order (a node that reads it twice appears once)."""
        found: dict[str, list[Node]] = {
            name: [] for name in (*(p.name for p in self.inputs), *(n.name for n in self.nodes))
        }
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found[value].append(node)
        return MappingProxyType({name: tuple(nodes) for name, nodes in found.items()})

    @cached_property
    def output_values(self) -> frozenset[str]:
        return frozenset(out.value for out in self.outputs)

    def type_of(self, value: str) -> TensorType:
        """The type of a node's output or of a graph input."""
        if node := self.by_name.get(value):
            return node.type
        for port in self.inputs:
            if port.name == value:
                return port.type
        raise GraphError(f"no value {value!r} in graph {self.name!r}")

    def const(self, node: Node, role: str) -> Array:
        """The array of a node's constant; GraphError where the node has none in that role."""
        name = node.const(role)
        if name is None:
            raise GraphError(f"{node.op} has no constant {role!r}", node=node.name)
        return self.consts[name]

    def const_or(self, node: Node, role: str) -> Array | None:
        name = node.const(role)
        return None if name is None else self.consts[name]

    def sole_user(self, value: str) -> Node | None:
        """The only reader of a value that is not a graph output, else None."""
        users = self.users[value]
        return users[0] if len(users) == 1 and value not in self.output_values else None

    def with_notes(self, notes: Notes) -> Graph:
        return replace(self, notes=notes)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over structure, attributes and constants; notes and origins do not count."""
        digest = hashlib.sha256()
        digest.update(repr((self.level, self.inputs, self.outputs)).encode())
        for node in self.nodes:
            digest.update(repr((node.name, node.op, node.inputs, node.consts, node.attrs, node.type)).encode())
        for name in sorted(self.consts):
            digest.update(f"{name}:{array_hash(self.consts[name])}".encode())
        if self.tail is not None:
            digest.update(self.tail.content_hash.encode())
        return digest.hexdigest()

    def to_networkx(self) -> networkx.DiGraph[str]:
        """A view for graph questions (paths, dominators, components): an edge for each value read."""
        import networkx as nx

        view: networkx.DiGraph[str] = nx.DiGraph()
        view.add_nodes_from(port.name for port in self.inputs)
        view.add_nodes_from(node.name for node in self.nodes)
        view.add_edges_from((value, node.name) for node in self.nodes for value in node.inputs)
        return view


def array_hash(array: Array) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class GraphBuilder:
    """Builds a graph node by node; types are inferred, names kept unique, every node checked on entry."""

    def __init__(self, name: str, level: str) -> None:
        self.name, self.level = name, level
        self.inputs: list[Input] = []
        self.nodes: dict[str, Node] = {}
        self.outputs: list[Output] = []
        self.consts: dict[str, Array] = {}
        self._types: dict[str, TensorType] = {}

    def unique(self, name: str) -> str:
        """`name`, or `name.1`, `name.2`, … where it is taken."""
        if name not in self._types:
            return name
        count = 1
        while f"{name}.{count}" in self._types:
            count += 1
        return f"{name}.{count}"

    def type_of(self, value: str) -> TensorType:
        return self._types[value]

    def input(self, name: str, type_: TensorType, grid: Grid | None = None) -> str:
        if name in self._types:
            raise GraphError(f"value {name!r} is defined twice")
        self.inputs.append(Input(name, type_, grid))
        self._types[name] = type_
        return name

    def constant(self, name: str, array: Array) -> str:
        """Register a constant; the same name with another content gets a suffix."""
        base, count = name, 0
        while name in self.consts and array_hash(self.consts[name]) != array_hash(array):
            count += 1
            name = f"{base}.{count}"
        held = np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        held = held.copy() if held.flags.writeable and held is array else held
        held.flags.writeable = False
        self.consts.setdefault(name, held)
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str,
        consts: Mapping[str, Array] | None = None,
        attrs: Mapping[str, AttrValue] | None = None,
        origin: Iterable[str] = (),
    ) -> str:
        """Append a node; `consts` are arrays by role.  Returns the (unique) name of its value."""
        name = self.unique(name)
        arrays = dict(consts or {})
        refs = tuple((role, self.constant(f"{name}.{role}", arrays[role])) for role in arrays)
        return self._insert(op, tuple(inputs), name, refs, attrs or {}, tuple(origin))

    def copy(self, graph: Graph, node: Node, rename: Mapping[str, str] | None = None, **changes: Any) -> str:
        """Append a node of another graph, its inputs renamed; `changes` may replace op, attrs or origin."""
        inputs = tuple((rename or {}).get(value, value) for value in node.inputs)
        for _, const in node.consts:
            self.consts.setdefault(const, graph.consts[const])
        attrs = {**node.attrs, **changes.get("attrs", {})}
        return self._insert(
            changes.get("op", node.op),
            inputs,
            node.name,
            node.consts,
            attrs,
            changes.get("origin", node.origin),
        )

    def _insert(
        self,
        op: str,
        inputs: tuple[str, ...],
        name: str,
        refs: tuple[tuple[str, str], ...],
        attrs: Mapping[str, AttrValue],
        origin: tuple[str, ...],
    ) -> str:
        if op not in OPS:
            raise GraphError(f"unknown operator {op!r}", node=name)
        try:
            types = [self._types[value] for value in inputs]
        except KeyError as missing:
            raise GraphError(f"{op} reads {missing}, which is not defined before it", node=name) from None
        full = OPS[op].check(len(inputs), dict(refs), attrs)
        try:
            type_ = OPS[op].infer(types, full, {role: self.consts[const] for role, const in refs})
        except GraphError as error:
            raise GraphError(error.message, node=name, hint=error.hint) from None
        if name in self._types:
            raise GraphError(f"value {name!r} is defined twice")
        self.nodes[name] = Node(name, op, inputs, refs, full, type_, origin)
        self._types[name] = type_
        return name

    def output(self, name: str, value: str, grid: Grid | None = None) -> None:
        self.outputs.append(Output(name, value, grid))

    def build(self, *, notes: Notes | None = None, tail: Graph | None = None) -> Graph:
        """The finished graph without dead nodes and unread constants."""
        live = {out.value for out in self.outputs}
        for node in reversed(self.nodes.values()):
            if node.name in live:
                live.update(node.inputs)
        nodes = tuple(node for node in self.nodes.values() if node.name in live)
        used = {const for node in nodes for _, const in node.consts}
        consts = {name: array for name, array in self.consts.items() if name in used}
        return Graph(
            self.name,
            self.level,
            tuple(self.inputs),
            nodes,
            tuple(self.outputs),
            consts,
            notes or Notes(),
            tail,
        )


Visit = Callable[[GraphBuilder, Node, Mapping[str, str]], str | None]


def rebuild(graph: Graph, visit: Visit) -> Graph:
    """A new graph from a visitor: for each node it emits a replacement and returns its value, or None to copy it.

    The visitor gets the builder, the node of the old graph, and the renaming of old to new values so far.
    """
    builder = GraphBuilder(graph.name, graph.level)
    rename: dict[str, str] = {}
    for port in graph.inputs:
        rename[port.name] = builder.input(port.name, port.type, port.grid)
    for node in graph.nodes:
        value = visit(builder, node, rename)
        rename[node.name] = builder.copy(graph, node, rename) if value is None else value
    for out in graph.outputs:
        builder.output(out.name, rename[out.value], out.grid)
    return builder.build(notes=graph.notes, tail=graph.tail)
