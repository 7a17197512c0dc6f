"""Programs that need no Python: an artifact as C files for somebody else's build.  See docs/export.md."""

from qcompile.export.writer import FORMATS, MANIFEST, export_artifact

__all__ = ["FORMATS", "MANIFEST", "export_artifact"]
