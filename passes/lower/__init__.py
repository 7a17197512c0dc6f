"""See docs/passes.md."""
