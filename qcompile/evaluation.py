"""Accuracy of an artifact on data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qcompile.data import LABELS, Dataset
from qcompile.exec.torch_exec import TorchGraph
from qcompile.ir import Array, Graph

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def evaluate_batches(run: Run, data: Dataset, source: Graph | None) -> dict[str, Any]:
    """Compare outputs with labels and with the float network.

    The class axis is axis 1 of the first output (images are NCHW, so segmentation maps count per position), and the
    last axis of outputs of rank 3 (one row of scores per anchor).

    Returns:
        n: samples; top1: fraction whose largest output is the label (None without labels); agreement: fraction of
        positions where the largest output is the float network's (None without it); loss: mean cross-entropy of the
        labels (None without labels).
    """
    n = hits = agreed = positions = 0
    loss = 0.0
    real = None if source is None else TorchGraph(source)
    for batch in data():
        inputs = {name: array for name, array in batch.items() if name != LABELS}
        y = next(iter(run(inputs).values()))
        axis = -1 if y.ndim == 3 else 1
        best = y.argmax(axis=axis)
        n += len(y)
        if data.has_labels:
            labels = np.asarray(batch[LABELS])
            hits += int((best == labels).sum())
            loss += float(_cross_entropy(y, labels).sum())
        if real is not None:
            expected = next(iter(real.run(inputs, with_tail=True).values())).argmax(dim=axis).numpy()
            agreed += int((best == expected).sum())
            positions += expected.size
    return {
        "n": n,
        "top1": hits / n if data.has_labels else None,
        "agreement": agreed / positions if source is not None else None,
        "loss": loss / n if data.has_labels else None,
    }


def _cross_entropy(y: Array, labels: Array) -> Array:
    """−log softmax(y)[label] of logits; outputs that are probabilities already are taken as they are."""
    flat = np.asarray(y, np.float64)
    rows = np.arange(len(flat))
    if flat.min() >= 0 and np.allclose(flat.sum(axis=1), 1, atol=1e-3):
        return np.asarray(-np.log(np.maximum(flat[rows, labels], 1e-12)))
    top = flat.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(flat - top).sum(axis=1)) + top[:, 0] - flat[rows, labels])
