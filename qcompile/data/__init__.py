"""From data files to validated batches: `.npz`, folders of images, dicts of arrays, callables and iterables.

NumPy only; Pillow is imported where a folder of images is read.
"""

from qcompile.data.check import LABELS, check_arrays
from qcompile.data.dataset import Dataset, load_batches, split_holdout
from qcompile.data.images import ImageFolder, Preprocessing

__all__ = [
    "LABELS",
    "Dataset",
    "ImageFolder",
    "Preprocessing",
    "check_arrays",
    "load_batches",
    "split_holdout",
]
