"""What an ELF object file takes in memory and which symbols it needs."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from qcompile.errors import TargetError

_ALLOCATED = 2
_SYMBOLS = 2
_WEAK_OR_GLOBAL = (1, 2)


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """Bytes of the sections that are loaded; names of the symbols somebody else must define."""

    memory_bytes: int
    undefined: tuple[str, ...]


def read_object(content: bytes) -> ObjectFacts:
    """Raises TargetError for anything but a little-endian ELF file."""
    if content[:4] != b"\x7fELF" or content[5] != 1:
        raise TargetError("the linker wrote something that is not a little-endian ELF object file")
    wide = content[4] == 2
    sections_at = struct.unpack_from("<Q" if wide else "<I", content, 0x28 if wide else 0x20)[0]
    size, count = struct.unpack_from("<HH", content, 0x3A if wide else 0x2E)
    # name, type, flags, address, offset, size, link
    layout = "<IIQQQQI" if wide else "<IIIIIII"
    sections = [struct.unpack_from(layout, content, sections_at + i * size) for i in range(count)]
    memory = sum(s[5] for s in sections if s[2] & _ALLOCATED)
    undefined: list[str] = []
    for _, kind, _, _, offset, length, link in sections:
        if kind != _SYMBOLS:
            continue
        names = sections[link][4]
        step = 24 if wide else 16
        for at in range(offset, offset + length, step):
            if wide:
                name, info, _, section = struct.unpack_from("<IBBH", content, at)
            else:
                name, _, _, info, _, section = struct.unpack_from("<IIIBBH", content, at)
            if section == 0 and info >> 4 in _WEAK_OR_GLOBAL:
                end = content.index(0, names + name)
                undefined.append(content[names + name : end].decode())
    return ObjectFacts(memory, tuple(sorted(set(undefined))))
