"""Shrunken checkpoints of both families, as published, and sessions of their graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from edgevlm_export.families import FAMILIES
from edgevlm_export.torchvision_operators import declare_missing_operators
from tests.export.dual_encoder.specimens import DUAL, Session, read, session_of


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> None:
    declare_missing_operators()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dual")
    for family in DUAL:
        FAMILIES[family].shrink(root / family)
    return {family: root / family for family in DUAL}


@pytest.fixture(params=DUAL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(folders[family], tmp_path / family))


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[Callable[[str, int, bool], Session]]:
    """A graph of a family, by index: 0 the images', 1 the texts'; traced once."""

    @cache
    def open_session(family: str, index: int, fixed: bool) -> Session:
        return session_of(read(folders[family]).graphs[index], fixed)

    yield open_session
    open_session.cache_clear()
