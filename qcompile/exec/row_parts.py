"""Work on independent rows by several threads: each takes a part of the rows through everything.

Products that share their inner loops between threads wait for each other thousands of times, which is slow when
something else runs on the machine; parts wait once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

LEAST = 64
"""Rows of a part, at least: fewer make slow products."""


def over_rows(rows: int, most: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices of at most `most` rows that cover all, from as many threads as torch has.

    NumPy's products in it run on one thread each.
    """
    threads = torch.get_num_threads()
    step = min(most, max(LEAST, -(-rows // threads)))
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with _libraries().limit(limits=1, user_api="blas"):
        list(_pool(threads).map(work, parts))


@cache
def _libraries() -> ThreadpoolController:
    """Whose threads can be limited; looking for them takes 2 ms."""
    return ThreadpoolController()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "qcompile-rows")


if hasattr(os, "register_at_fork"):
    # A forked process has the pool's object but none of its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
