"""`import edgevlm` offers a few names, and finds each of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgevlm

ROOT = Path(__file__).resolve().parent.parent


def test_names_are_sorted_and_few() -> None:
    assert edgevlm.__all__ == sorted(edgevlm.__all__)
    assert len(edgevlm.__all__) <= 11


@pytest.mark.parametrize("name", edgevlm.__all__)
def test_each_name_is_found(name: str) -> None:
    found = getattr(edgevlm, name)
    assert found.__name__ == name


def test_each_name_is_visible_to_type_checkers() -> None:
    tree = ast.parse((ROOT / "edgevlm" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(edgevlm.__all__)


def test_dir_lists_what_is_not_loaded_yet() -> None:
    assert set(edgevlm.__all__) <= set(dir(edgevlm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'edgevlm' has no attribute 'laod'"):
        _ = edgevlm.laod


def test_the_version_is_that_of_the_distribution() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{edgevlm.__version__}"' in project
