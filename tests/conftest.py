"""What all tests share."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings
from models import NO_MODELS, SHARED_MODELS

settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def shared_models() -> Path:
    """The folder of real models, which is no part of the repository."""
    if not SHARED_MODELS.is_dir():
        pytest.skip(NO_MODELS)
    return SHARED_MODELS
