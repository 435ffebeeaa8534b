"""Manifests whose parts contradict each other, or say what can not be: an error that names the part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm_runtime.bundle import open_bundle
from tests.runtime.bundle.manifests import edit, refused


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("image", "crop_px"), 0),
        (("image", "crop_px"), 379),
        (("image", "crop_px"), 112),
        (("image", "mean"), [0.5]),
        (("image", "std"), [0.5, 0.0, 0.5]),
        (("image", "tiling", "patch_px"), 0),
        (("image", "tiling", "margin_patches"), -1),
        (("image", "tiling", "margin_patches"), 14),
        (("image", "tiling", "max_crops"), 0),
        (("image", "tiling", "max_crops"), 10**9),
        (("image", "center_crop"), {"shortest_px": 400, "rounding": "floor"}),  # and tiles
    ],
)
def test_sizes_that_can_not_be(root: Path, place: tuple[str, ...], value: object) -> None:
    def change(data: dict[str, Any]) -> None:
        for name in place[:-1]:
            data = data[name]
        data[place[-1]] = value

    edit(root, change)
    assert "image" in refused(root)


@pytest.mark.parametrize(
    ("name", "value", "sound"),
    [
        ("split", 2, True),
        ("split", 0, False),
        ("split", 9, False),
        ("frames", {"fps": 0.5}, True),
        ("frames", {"fps": 0.0}, False),
        ("frames", {"fps": -1.0}, False),
    ],
)
def test_split_images_and_frames_can_be_made(root: Path, name: str, value: object, sound: bool) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["image"]["tiling"]
        data["image"][name] = value

    edit(root, change)
    if sound:
        open_bundle(root)
    else:
        assert "image: its sizes do not fit" in refused(root)


def test_split_images_are_not_tiled_too(root: Path) -> None:
    edit(root, lambda data: data["image"].update(split=2))
    assert "image: its sizes do not fit" in refused(root)


FUSION = {"n_compressed": 1, "n_layers": 2, "n_kv_heads": 1, "head_dim": 8, "max_context": 64}


@pytest.mark.parametrize(
    ("change", "graph"), [({}, "other"), ({"n_layers": 0}, "prefuse"), ({"max_context": 1}, "prefuse")]
)
def test_fusion_fits_its_graph(root: Path, change: dict[str, int], graph: str) -> None:
    def fuse(data: dict[str, Any], sizes: dict[str, int], role: str) -> None:
        data["fusion"] = sizes
        data["graphs"][role] = next(iter(data["graphs"].values()))

    edit(root, lambda data: fuse(data, FUSION, "prefuse"))
    open_bundle(root)
    edit(root, lambda data: data["graphs"].pop("prefuse"))
    edit(root, lambda data: fuse(data, {**FUSION, **change}, graph))
    assert "fusion: it does not fit the graphs" in refused(root)


@pytest.mark.parametrize(("shortest_px", "sound"), [(377, False), (378, True), (8192, True), (10**6, False)])
def test_a_center_crop_fits_what_was_scaled(root: Path, shortest_px: int, sound: bool) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["image"]["tiling"]
        data["image"]["center_crop"] = {"shortest_px": shortest_px, "rounding": "half_even"}

    edit(root, change)
    if sound:
        open_bundle(root)
    else:
        assert "image: its sizes do not fit" in refused(root)


def test_texts_that_can_not_be(root: Path) -> None:
    text = {"context": 1, "pad_id": 0, "end_id": 1, "pad_to_context": True}
    edit(root, lambda data: data.update(text=text))
    assert "text: a context of 1" in refused(root)
    match = {"scale": 1.0, "bias": 0.0, "activation": "sigmoid", "template": "a photo"}
    edit(root, lambda data: (data.pop("text"), data.update(match=match)))
    assert "template 'a photo' has no {}" in refused(root)
