"""models.yaml and names."""

from __future__ import annotations

import pytest

from edgevlm.catalog import canonical, find_entry, load_catalog
from edgevlm_runtime.errors import ModelNotFound


@pytest.mark.parametrize("spelling", ["moondream2-0.5b", "Moondream2_0.5B", " MOONDREAM2-0.5B "])
def test_case_and_separators_make_no_difference(spelling: str) -> None:
    assert find_entry(spelling).name == "moondream2-0.5b"


def test_a_misspelled_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'moondraem2' in the catalog; did you mean moondream2\?"):
        find_entry("moondraem2")


def test_a_name_like_no_other_is_answered_with_the_catalog() -> None:
    with pytest.raises(ModelNotFound, match="the catalog has moondream2, "):
        find_entry("xyzzy")


def test_every_entry_has_a_source_or_says_nothing_of_one() -> None:
    for name, entry in load_catalog().items():
        assert name == canonical(name) == entry.name
        assert (entry.repo is None) == (entry.revision is None) == (not entry.files), name
        assert entry.license and entry.description, name


def test_every_family_of_the_catalog_can_be_exported() -> None:
    from edgevlm_export.families import FAMILIES

    assert {entry.family for entry in load_catalog().values()} <= set(FAMILIES)
