"""Artifacts: what a compilation leaves behind, and all that is needed to run it.  See docs/artifact.md.

NumPy only; a target's code generator or runtime is imported when an artifact is run.
"""

from qcompile.artifact.files import refuse_existing
from qcompile.artifact.manifest import Budgets, Calibration, FileRecord, Manifest, Model, Record
from qcompile.artifact.measurements import read_measurements, write_measurements
from qcompile.artifact.reader import load
from qcompile.artifact.runner import Artifact
from qcompile.artifact.writer import write_artifact

__all__ = [
    "Artifact",
    "Budgets",
    "Calibration",
    "FileRecord",
    "Manifest",
    "Model",
    "Record",
    "load",
    "read_measurements",
    "refuse_existing",
    "write_artifact",
    "write_measurements",
]
