"""Typed side tables: what analyses know about nodes, with the aspects of the graph each fact depends on."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Aspect(enum.Flag):
    """What a pass may change and a note may depend on."""

    NOTHING = 0
    STRUCTURE = enum.auto()
    """Nodes, edges, attributes, types."""
    WEIGHTS = enum.auto()
    """The contents of constants."""


@dataclass(frozen=True, slots=True)
class NoteKey(Generic[T]):
    """A kind of fact: its name, the type of its values, and the aspects that invalidate it when they change."""

    name: str
    type: type[T]
    depends: Aspect


class Notes:
    """An immutable table `key → {subject: value}`; subjects are node, value or layer names."""

    __slots__ = ("_tables",)

    def __init__(self, tables: Mapping[NoteKey[Any], Mapping[str, Any]] | None = None) -> None:
        self._tables: Mapping[NoteKey[Any], Mapping[str, Any]] = MappingProxyType(dict(tables or {}))

    def __contains__(self, key: NoteKey[Any]) -> bool:
        return key in self._tables

    def __getitem__(self, key: NoteKey[T]) -> Mapping[str, T]:
        return self._tables[key]

    def get(self, key: NoteKey[T]) -> Mapping[str, T]:
        """The table of a key, empty where nothing was noted."""
        return self._tables.get(key, {})

    @property
    def keys(self) -> frozenset[NoteKey[Any]]:
        return frozenset(self._tables)

    def with_table(self, key: NoteKey[T], table: Mapping[str, T]) -> Notes:
        """A copy in which `key` has exactly this table."""
        wrong = [type(value).__name__ for value in table.values() if not isinstance(value, key.type)]
        if wrong:
            raise TypeError(f"note {key.name!r} holds {key.type.__name__}, not {wrong[0]}")
        return Notes({**self._tables, key: MappingProxyType(dict(table))})

    def without(self, changed: Aspect) -> Notes:
        """A copy without the notes that depend on a changed aspect."""
        return Notes({key: table for key, table in self._tables.items() if not key.depends & changed})
