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


def test_a_name_like_no_other_is_answered_with_where_names_are() -> None:
    with pytest.raises(ModelNotFound, match="`edgevlm list` shows all"):
        find_entry("xyzzy")


def test_any_backbone_of_timm_is_an_entry() -> None:
    entry = find_entry(" timm/resnet18.a1_in1k ")
    assert (entry.name, entry.variant) == ("resnet18.a1-in1k", "resnet18.a1_in1k")
    assert (entry.repo, entry.revision) == ("timm/resnet18.a1_in1k", "main")
    assert (entry.family, entry.precision) == ("timm_backbone", "int8")
    assert "huggingface.co/timm/resnet18.a1_in1k" in entry.description


@pytest.mark.parametrize("name", ["timm/", "timm/a b", "timm/a/b", "timm/..", "timm/.hidden", "timm/ä"])
def test_what_can_not_be_a_name_of_timm_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no name of a timm model"):
        find_entry(name)


def test_every_entry_has_a_source_or_says_nothing_of_one() -> None:
    for name, entry in load_catalog().items():
        assert name == canonical(name) == entry.name
        assert (entry.repo is None) == (entry.revision is None) == (not entry.files), name
        assert entry.license and entry.description, name


def test_every_backbone_of_timm_names_its_weights() -> None:
    # Without a tag timm takes its default, which for the TinyViTs of 224 px has 21841 classes.
    backbones = [entry for entry in load_catalog().values() if entry.family == "timm_backbone" and entry.repo]
    assert backbones
    for entry in backbones:
        assert entry.variant is not None and "." in entry.variant, entry.name


def test_every_family_of_the_catalog_can_be_exported() -> None:
    from edgevlm_export.families import FAMILIES

    assert {entry.family for entry in load_catalog().values()} <= set(FAMILIES)
