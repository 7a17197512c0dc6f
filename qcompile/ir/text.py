"""The text form of graphs (`.qir`): what dumps and golden tests are written in.  It reads back exactly.

    graph resnet8 : float
    in %x : f32[N,3,32,32]
    %conv1 = conv2d(%x, w=@conv1.w, b=@conv1.b) {pad=(1, 1, 1, 1)} : f32[N,16,32,32]  # c1 · fold-batch-norm
    out fc = %conv1
    const @conv1.b : float32[2] [0.5, -1.0]
    const @conv1.w : float32[16,3,3,3] sha256:5c0a…

One statement stands on one line.  Attributes at their default are left out.  Constants of at most 64 elements
are written out, larger ones by their hash.  A trailing comment holds a node's origin; lines that are only a
comment are skipped.  The host's output function follows behind the line `tail`.  Names that are not plain are
JSON strings. Notes are not part of the text (`qcompile.pm.notes_json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompile.errors import GraphError
from qcompile.ir.graph import Graph, Grid, Input, Node, Output, array_hash
from qcompile.ir.ops import OPS, Attrs, AttrValue
from qcompile.ir.types import BATCH, Array, TensorType

INLINE_ELEMENTS = 64
_SEPARATOR = " · "
_NAME = re.compile(r"[A-Za-z0-9_./$:\-]*[A-Za-z0-9_/$]")
_INLINE_DTYPES = frozenset({"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"})
_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:[^"\\]|\\.)*")
             | (?P<comment>\#.*)
             | (?P<word>[A-Za-z0-9_./$:+\-]+(?<!:)|:)
             | (?P<mark>[%@=,(){}\[\]]) )""",
    re.VERBOSE,
)


def to_text(graph: Graph) -> str:
    """The graph as text; equal graphs (notes aside) give equal text."""
    return "".join(f"{line}\n" for line in _lines(graph))


def _lines(graph: Graph) -> Iterator[str]:
    yield f"graph {_name(graph.name)} : {graph.level}"
    for port in graph.inputs:
        yield f"in %{_name(port.name)} : {port.type}{_grid(port.grid)}"
    for node in graph.nodes:
        args = [f"%{_name(value)}" for value in node.inputs]
        args += [f"{role}=@{_name(const)}" for role, const in node.consts]
        origin = _SEPARATOR.join(_origin(part) for part in node.origin)
        yield (
            f"%{_name(node.name)} = {node.op}({', '.join(args)}){_attrs(node)} : {node.type}"
            f"{'  # ' if origin else ''}{origin}"
        )
    for out in graph.outputs:
        yield f"out {_name(out.name)} = %{_name(out.value)}{_grid(out.grid)}"
    for name, array in graph.consts.items():
        shape = ",".join(map(str, array.shape))
        yield f"const @{_name(name)} : {array.dtype.name}[{shape}] {_content(array)}"
    if graph.tail is not None:
        yield "tail"
        yield from _lines(graph.tail)


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else json.dumps(name)


def _origin(part: str) -> str:
    plain = part and part == part.strip() and '"' not in part and "·" not in part and part.isprintable()
    return part if plain else json.dumps(part)


def _grid(grid: Grid | None) -> str:
    return "" if grid is None else f" grid({float(grid.scale)!r}, {grid.zero}, {grid.dtype})"


def _attrs(node: Node) -> str:
    defaults: Mapping[str, Any] = OPS[node.op].attrs if node.op in OPS else {}
    # repr, because 0 == 0.0 but the two hash differently.
    shown = [f"{k}={_value(v)}" for k, v in node.attrs.items() if k not in defaults or repr(defaults[k]) != repr(v)]
    return f" {{{', '.join(shown)}}}" if shown else ""


def _value(value: AttrValue) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return repr(value)


def _content(array: Array) -> str:
    if array.size <= INLINE_ELEMENTS and array.dtype.name in _INLINE_DTYPES and array.dtype.isnative:
        flat = array.reshape(-1)
        if array.dtype.kind in "iu":
            return f"[{', '.join(map(str, flat.tolist()))}]"
        if np.isfinite(array).all():
            # str of a NumPy float is the shortest text that reads back as the same float of that width.
            return f"[{', '.join(map(str, flat))}]"
    return f"sha256:{array_hash(array)}"


def from_text(text: str, consts: Mapping[str, Array] | None = None) -> Graph:
    """The graph a text describes.

    Args:
        text: what `to_text` wrote.
        consts: arrays by name, for the constants the text holds only as a hash.

    Raises:
        GraphError: the text cannot be read, or a constant is missing or has another content.
    """
    rows = enumerate(text.splitlines(), start=1)
    statements = [_Line(row, number) for number, row in rows if row.strip() and not row.lstrip().startswith("#")]
    graphs: list[_Draft] = []
    expect_graph = True
    for line in statements:
        if expect_graph:
            line.take("graph")
            graphs.append(_Draft(line.name(), line.after(":")))
            expect_graph = False
        elif line.peek() == "tail" and len(line.tokens) == 1:
            line.take("tail")
            expect_graph = True
        else:
            graphs[-1].read(line, consts or {})
        line.end()
    if expect_graph:
        raise GraphError("the text of a graph must begin with `graph name : level`")
    tail: Graph | None = None
    for draft in reversed(graphs):
        tail = draft.build(tail)
    assert tail is not None  # there is at least one draft, or the check above has raised
    return tail


class _Draft:
    """A graph while its lines are read."""

    def __init__(self, name: str, level: str) -> None:
        self.name, self.level = name, level
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: list[Output] = []
        self.consts: dict[str, Array] = {}

    def read(self, line: _Line, known: Mapping[str, Array]) -> None:
        match line.peek():
            case "%":
                self.nodes.append(_read_node(line))
            case "in":
                line.take("in", "%")
                name = line.name()
                line.take(":")
                self.inputs.append(Input(name, _read_type(line), _read_grid(line)))
            case "out":
                line.take("out")
                name = line.name()
                line.take("=", "%")
                self.outputs.append(Output(name, line.name(), _read_grid(line)))
            case "const":
                line.take("const", "@")
                name = line.name()
                self.consts[name] = _read_const(line, name, known)
            case other:
                raise line.error(f"a line cannot begin with {other!r}")

    def build(self, tail: Graph | None) -> Graph:
        return Graph(
            self.name,
            self.level,
            tuple(self.inputs),
            tuple(self.nodes),
            tuple(self.outputs),
            self.consts,
            tail=tail,
        )


def _read_node(line: _Line) -> Node:
    line.take("%")
    name = line.name()
    line.take("=")
    op = line.word()
    inputs, consts = [], []
    line.take("(")
    while not line.accept(")"):
        if line.accept("%"):
            inputs.append(line.name())
        else:
            role = line.word()
            line.take("=", "@")
            consts.append((role, line.name()))
        if line.peek() != ")":
            line.take(",")
    attrs: dict[str, AttrValue] = {}
    if line.accept("{"):
        while not line.accept("}"):
            key = line.word()
            line.take("=")
            attrs[key] = _read_value(line)
            if line.peek() != "}":
                line.take(",")
    if op not in OPS:
        raise line.error(f"unknown operator {op!r}")
    try:
        full = OPS[op].check(len(inputs), dict(consts), attrs)
    except GraphError as error:
        raise line.error(error.message) from error
    line.take(":")
    return Node(name, op, tuple(inputs), tuple(consts), Attrs(full), _read_type(line), line.origin())


def _read_value(line: _Line) -> AttrValue:
    if line.accept("("):
        values = []
        while not line.accept(")"):
            values.append(line.integer())
            if line.peek() != ")":
                line.take(",")
        return tuple(values)
    return line.string() if line.peek().startswith('"') else line.number()


def _read_type(line: _Line) -> TensorType:
    dtype, dims = line.word(), line.items()
    if not dims or dims[0] != "N":
        raise line.error("the first dimension of a value is the batch, N")
    try:
        return TensorType((BATCH, *(line.to_int(d) for d in dims[1:])), dtype)
    except GraphError as error:
        raise line.error(error.message) from error


def _read_grid(line: _Line) -> Grid | None:
    if not line.accept("grid"):
        return None
    line.take("(")
    scale = float(line.number())
    line.take(",")
    zero = line.integer()
    line.take(",")
    grid = Grid(scale, zero, line.word())
    line.take(")")
    return grid


def _read_const(line: _Line, name: str, known: Mapping[str, Array]) -> Array:
    line.take(":")
    dtype, shape = line.word(), tuple(line.to_int(d) for d in line.items())
    if line.peek() == "[":
        try:
            array = np.array(line.items(), dtype="U").astype(dtype).reshape(shape)
        except (TypeError, ValueError) as error:
            raise line.error(f"constant @{name}: {error}") from error
        array.flags.writeable = False
        return array
    digest = line.word().removeprefix("sha256:")
    if name not in known:
        raise line.error(f"constant @{name} is written as a hash and was not given")
    held = known[name]
    if (held.dtype.name, held.shape, array_hash(held)) != (dtype, shape, digest):
        raise line.error(f"constant @{name} was given with another content than the text describes")
    return held


class _Line:
    """The tokens of one line, consumed from the left."""

    def __init__(self, text: str, row: int) -> None:
        self.text, self.row = text, row
        self.tokens: list[str] = []
        self.comment = ""
        self.at = 0
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"cannot read {text[position:].strip()[:20]!r}")
            position = match.end()
            if match.lastgroup == "comment":
                self.comment = match["comment"][1:].strip()
            else:
                self.tokens.append(match[match.lastgroup or ""])

    def error(self, message: str) -> GraphError:
        return GraphError(f"line {self.row}: {message}: {self.text.strip()[:80]}")

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def accept(self, token: str) -> bool:
        found = self.peek() == token
        self.at += int(found)
        return found

    def take(self, *tokens: str) -> None:
        for token in tokens:
            if not self.accept(token):
                raise self.error(f"expected {token!r}, found {self.peek() or 'the end'!r}")

    def word(self) -> str:
        token = self.peek()
        if not token or token[0] in '%@=,(){}[]"' or token == ":":
            raise self.error(f"expected a word, found {token or 'the end'!r}")
        self.at += 1
        return token

    def string(self) -> str:
        token = self.peek()
        self.at += 1
        return str(json.loads(token))

    def name(self) -> str:
        return self.string() if self.peek().startswith('"') else self.word()

    def after(self, token: str) -> str:
        self.take(token)
        return self.word()

    def to_int(self, token: str) -> int:
        try:
            return int(token)
        except ValueError:
            raise self.error(f"{token!r} is not an integer") from None

    def integer(self) -> int:
        return self.to_int(self.word())

    def number(self) -> int | float:
        token = self.word()
        try:
            return int(token) if re.fullmatch(r"[+-]?\d+", token) else float(token)
        except ValueError:
            raise self.error(f"{token!r} is not a number") from None

    def items(self) -> list[str]:
        """Words between brackets, separated by commas."""
        self.take("[")
        found: list[str] = []
        while not self.accept("]"):
            found.append(self.word())
            if self.peek() != "]":
                self.take(",")
        return found

    def origin(self) -> tuple[str, ...]:
        if not self.comment:
            return ()
        # JSON strings are written in ASCII, so the separator is never inside one.
        parts = [part.strip() for part in self.comment.split("·")]
        return tuple(str(json.loads(part)) if part.startswith('"') else part for part in parts)

    def end(self) -> None:
        if self.at != len(self.tokens):
            raise self.error(f"unexpected {self.peek()!r}")


def same_graph(a: Graph, b: Graph) -> bool:
    """Equal in name, everything `content_hash` covers, and origins; notes do not count."""
    origins = [[node.origin for node in graph.nodes] for graph in (a, b)]
    tails = (a.tail, b.tail)
    if (tails[0] is None) != (tails[1] is None) or a.name != b.name or origins[0] != origins[1]:
        return False
    if tails[0] is not None and tails[1] is not None and not same_graph(tails[0], tails[1]):
        return False
    return a.content_hash == b.content_hash
