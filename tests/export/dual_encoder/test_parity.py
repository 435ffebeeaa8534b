"""CLIP and SigLIP: images, texts and scores against transformers' own classes, reading the same folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from safetensors.torch import load_file

from edgevlm_export.families.processor import read_image_spec
from edgevlm_runtime.manifest import CenterCropSpec
from edgevlm_runtime.preprocess import prepare_image
from edgevlm_runtime.text_encoder import token_ids
from tests.export.dual_encoder.specimens import (
    TEXTS,
    TOLERANCE,
    Session,
    edit_json,
    original,
    pictures,
    read,
    text_spec,
    their_ids,
    tokenizer_of,
)

PROCESSORS = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}


@pytest.mark.parametrize("fixed", [False, True])
def test_images_are_embedded_as_by_transformers(
    folders: dict[str, Path], sessions: Callable[[str, int, bool], Session], family: str, fixed: bool
) -> None:
    run, model = sessions(family, 0, fixed), original(folders[family])
    for n_images in (1,) if fixed else (1, 3, 8):
        images = np.random.default_rng(n_images).normal(size=(n_images, 3, 32, 32)).astype(np.float32)
        with torch.no_grad():
            expected = model.get_image_features(pixel_values=torch.from_numpy(images)).numpy()
        assert_allclose(run(images), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("n_tokens", [2, 5, 13, 20])
@pytest.mark.parametrize("n_texts", [1, 4])
def test_clip_reads_texts_of_any_length(
    folders: dict[str, Path], sessions: Callable[[str, int, bool], Session], n_tokens: int, n_texts: int
) -> None:
    end_id = text_spec(read(folders["clip"])).end_id
    assert end_id is not None
    ids = np.random.default_rng(n_tokens).integers(0, end_id, (n_texts, n_tokens))
    # Texts that end at different places: the attention mask that transformers is given must make no difference.
    for row, text in enumerate(ids):
        text[max(1, n_tokens - 1 - row) :] = end_id
    mask = torch.from_numpy((np.cumsum(ids == end_id, axis=1) <= 1).astype(np.int64))
    with torch.no_grad():
        expected = original(folders["clip"]).get_text_features(torch.from_numpy(ids), attention_mask=mask).numpy()
    assert_allclose(sessions("clip", 1, False)(ids), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_graphs_of_fixed_shapes_read_one_padded_text(
    folders: dict[str, Path], sessions: Callable[[str, int, bool], Session], family: str
) -> None:
    spec = replace(text_spec(read(folders[family])), pad_to_context=True)
    ids = token_ids(spec, tokenizer_of(folders[family]), ["this is a cat"])
    assert ids.shape == (1, spec.context)
    with torch.no_grad():
        expected = original(folders[family]).get_text_features(torch.from_numpy(ids)).numpy()
    assert_allclose(sessions(family, 1, True)(ids), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_pictures_are_compared_with_words_as_by_transformers(
    folders: dict[str, Path], sessions: Callable[[str, int, bool], Session], family: str
) -> None:
    """Everything but the recipe's own specs is transformers' code: its preprocessing, tokenizer, model and formula."""
    recipe, images = read(folders[family]), pictures()
    image_spec, match = recipe.parts.image, recipe.parts.match
    assert image_spec is not None and match is not None
    pixels = [prepare_image(np.asarray(image), image_spec) for image in images]
    embedded = sessions(family, 0, False)(np.stack(pixels))
    ids = token_ids(text_spec(recipe), tokenizer_of(folders[family]), TEXTS)
    words = sessions(family, 1, False)(ids)
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (embedded, words)]
    logits = match.scale * unit[0] @ unit[1].T + match.bias

    processor = getattr(transformers, PROCESSORS[family]).from_pretrained(folders[family])
    inputs = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        found = original(folders[family])(input_ids=torch.from_numpy(their_ids(folders, family, TEXTS)), **inputs)
    assert_allclose(logits, found.logits_per_image.numpy(), atol=1e-3, rtol=1e-4)
    assert np.ptp(logits) > 1  # random as it is, the model tells the pictures apart


@pytest.mark.parametrize(
    ("family", "changes", "crop"),
    [
        ("clip", {"size": 32}, CenterCropSpec(shortest_px=32, rounding="floor")),
        ("clip", {"size": {"shortest_edge": 37}}, CenterCropSpec(shortest_px=37, rounding="floor")),
        (
            "clip",
            {"size": {"shortest_edge": 40}, "resample": 2, "crop_size": {"height": 32, "width": 32}},
            CenterCropSpec(shortest_px=40, rounding="floor"),
        ),
        ("clip", {"size": {"height": 32, "width": 32}, "do_center_crop": False}, None),
        ("siglip", {"resample": 1}, None),
        ("siglip", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255}, None),
    ],
)
def test_images_are_prepared_as_by_transformers(
    copy: Callable[[str], Path], family: str, changes: dict[str, Any], crop: CenterCropSpec | None
) -> None:
    folder = copy(family)
    edit_json(folder / "preprocessor_config.json", **changes)
    spec = read_image_spec(folder, "CLIP", 32)
    assert spec.center_crop == crop
    processor = getattr(transformers, PROCESSORS[family]).from_pretrained(folder)
    for image in pictures():
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        assert_allclose(prepare_image(np.asarray(image), spec), expected, atol=1e-6)


def test_half_precision_pickles_from_older_versions(copy: Callable[[str], Path], folders: dict[str, Path]) -> None:
    """pytorch_model.bin in float16, with the positions that transformers used to store."""
    folder = copy("clip")
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "text_model.embeddings.position_ids": torch.arange(20)[None]}, folder / "pytorch_model.bin")
    graph = read(folder).graphs[0]
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = original(folder).float().get_image_features(torch.from_numpy(images)).numpy()
    assert_allclose(graph.reference({"images": images})["embeddings"], expected, atol=TOLERANCE)
    exact = read(folders["clip"]).graphs[0].reference({"images": images})["embeddings"]
    assert 1e-6 < np.abs(exact - expected).max() < 0.1
