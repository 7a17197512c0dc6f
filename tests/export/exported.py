"""The networks that are exported, and the type of the fixture that builds them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

NETWORKS = ("digits_resnet", "digits_mobilenet", "autoencoder")

Make = Callable[..., "subprocess.CompletedProcess[str]"]
