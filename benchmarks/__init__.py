"""Latency of qcompile's artifacts beside that of other engines.  See README.md."""
