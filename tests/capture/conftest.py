"""The evaluation networks, where they are at hand."""

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


@pytest.fixture(scope="session")
def models() -> Path:
    if not MODELS.is_dir():
        pytest.skip("the evaluation networks are not at hand (../shared/data/models)")
    return MODELS
