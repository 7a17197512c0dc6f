"""Every error qcompile raises on purpose, each with the exit code the command line returns for it.

A message says what is wrong and where; `hint` says what to do next.  Exit codes are listed in docs/cli.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any


class QcompileError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what went wrong and where, one sentence or a short list.
        node: the graph node it is about, when there is one.
        hint: what the user can do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, node: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.hint = hint

    def __str__(self) -> str:
        where = f" (node {self.node!r})" if self.node else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{self.message}{where}{hint}"


class UsageError(QcompileError):
    """A flag, a unit, a data file or a recipe that cannot be understood or does not fit the model."""

    exit_code = 2


class DataError(UsageError):
    """Calibration or evaluation data of the wrong name, shape, dtype or content."""


class CaptureError(QcompileError):
    """The model file is damaged, unsafe or not a network qcompile can read."""

    exit_code = 3


class UnsupportedOpError(CaptureError):
    """The model holds operators (listed, all of them) that qcompile does not support."""


class InfeasibleError(QcompileError):
    """No plan keeps the budgets; the message states the best possible value of each.

    Attributes:
        least: limit that cannot be kept → its smallest possible value under the others, where that is known.
    """

    exit_code = 4
    least: Mapping[str, float] = MappingProxyType({})


class AccuracyError(QcompileError):
    """The compiled model misses the accuracy the user asked for; the artifact is kept as `.rejected`."""

    exit_code = 5


class DeviceError(QcompileError):
    """The device cannot be reached, lacks an instruction set, or is too noisy to be measured.

    Attributes:
        measured: what it measured before, in the order it was asked for; None for the rest.
    """

    exit_code = 6
    measured: Sequence[Any] = ()


class TargetError(UsageError):
    """An unknown target, or one that this machine cannot compile for or run."""


class VerificationError(QcompileError):
    """The artifact differs from the reference, or computes in floating point."""

    exit_code = 7


class ArtifactError(QcompileError):
    """An artifact that is damaged, incomplete, or written by an incompatible version."""

    exit_code = 7


class StorageError(QcompileError):
    """No space or no permission to write; nothing half-written is left behind."""

    exit_code = 8


class InternalError(QcompileError):
    """A defect of qcompile or of a plug-in, never of the user's input."""


class GraphError(InternalError):
    """A graph that breaks the rules of the intermediate representation."""


class PassContractError(InternalError):
    """A pass broke a promise it declares (level, requirements, what it changes or preserves)."""


class OverflowProofError(QcompileError):
    """Integer ranges show that an accumulator or product may overflow: the layer is refused."""

    exit_code = 3


class InstallError(QcompileError):
    """The installation is incomplete, or another package shadows one of ours."""

    exit_code = 2
