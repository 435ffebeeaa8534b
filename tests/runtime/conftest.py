"""One bundle for the fake engine, models on it, and an image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.model import Model
from tests.runtime.fake_bundle import make_model, write_bundle
from tests.runtime.fake_engine import TinyDecoder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A complete bundle of the tiny model."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def tiny(bundle: Bundle) -> tuple[Model, TinyDecoder]:
    """A model and its decoder; give `decoder.script` tokens to force."""
    return make_model(bundle)


@pytest.fixture(scope="session")
def photo() -> npt.NDArray[np.uint8]:
    """An image (height, width, 3) that needs local crops."""
    return np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
