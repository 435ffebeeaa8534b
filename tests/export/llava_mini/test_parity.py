"""The bundle in float32, through the runtime, against transformers' classes: every stage, then whole answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from edgevlm_runtime.frames import squash
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.parts import needed
from edgevlm_runtime.preprocess import make_crops
from edgevlm_runtime.vision import open_tower
from tests.export.llava_mini.conftest import Case
from tests.oracles.llava_mini_transformers import PLACEHOLDER

Photos = list[npt.NDArray[np.uint8]]
QUESTIONS = ("What is in the picture?", "Wow! Really!! What now?")  # "!" is 0, which fusion leaves out
LONG = GenerateOptions(max_tokens=32, logits=True)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def relative_error(ours: npt.NDArray[Any], theirs: Tensor) -> float:
    """The largest absolute difference over the largest absolute value."""
    expected = theirs.numpy()
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def pixels_of(case: Case, photo: npt.NDArray[np.uint8]) -> Tensor:
    return case.oracle.pixels(Image.fromarray(photo))


def frame_pixels(case: Case, photo: npt.NDArray[np.uint8]) -> Tensor:
    """A frame as the published code resizes it, which is torch's nearest."""
    side = case.config.vision.image_px
    frame = functional.interpolate(torch.tensor(photo.transpose(2, 0, 1)[None]), size=(side, side))[0]
    return case.oracle.pixels(Image.fromarray(frame.permute(1, 2, 0).numpy()))


def test_preprocessing(case: Case, photos: Photos) -> None:
    spec = needed(case.model.manifest.image, "image")
    for photo in photos:
        crops, _ = make_crops(photo, spec)
        np.testing.assert_allclose(crops, pixels_of(case, photo).numpy(), atol=2e-6)


def test_patches_and_compressed_tokens(case: Case, photos: Photos) -> None:
    for photo in photos:
        tokens = open_tower(needed(case.model.manifest.image, "image"), case.model._graphs).encode(photo)
        expected = case.oracle.vision(case.oracle.features(pixels_of(case, photo)))
        assert relative_error(tokens, expected) < 1e-5


@pytest.mark.parametrize("question", QUESTIONS)
def test_fused_tokens(case: Case, photos: Photos, question: str) -> None:
    ids = case.prompt(question)
    fused = case.oracle.fuse(case.oracle.vision(case.oracle.features(pixels_of(case, photos[0]))), ids)
    image = case.model.encode(photos[0])
    assert relative_error(image.embeddings, fused.compressed) < 1e-5
    parts = case.model._open_parts()
    words = parts.embed(parts.prompts.query(question), image.states)
    assert relative_error(words, fused.words[ids.index(PLACEHOLDER) + 1 :]) < 1e-5
    raw = parts.embed(parts.prompts.query(question))
    assert any((words == raw).all(axis=1)) == ("!" in question), "only raw ids stay as they are"


@pytest.mark.parametrize("question", QUESTIONS)
def test_first_logits_and_greedy_tokens(case: Case, photos: Photos, question: str) -> None:
    for photo in photos[:2]:
        answer = case.model.query(photo, question, LONG)
        inputs = case.oracle.inputs([pixels_of(case, photo)], case.prompt(question))
        assert answer.first_logits is not None
        assert relative_error(answer.first_logits, case.oracle.logits(inputs)) < 1e-3
        spec = needed(case.model.manifest.prompt, "prompt")
        assert list(answer.token_ids) == case.oracle.greedy(inputs, 32, (spec.eos_id, *spec.stop_ids))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_video_of_three_frames(case: Case, photos: Photos, question: str) -> None:
    frames = photos[:3]
    answer = case.model.query(frames, question, LONG)
    inputs = case.oracle.inputs([frame_pixels(case, photo) for photo in frames], case.prompt(question))
    assert answer.usage.image_tokens == 3 * case.config.n_compressed
    assert answer.first_logits is not None
    assert relative_error(answer.first_logits, case.oracle.logits(inputs)) < 1e-3
    spec = needed(case.model.manifest.prompt, "prompt")
    assert list(answer.token_ids) == case.oracle.greedy(inputs, 32, (spec.eos_id, *spec.stop_ids))


def test_a_question_without_an_image(case: Case) -> None:
    answer = case.model.query(None, QUESTIONS[1], LONG)
    inputs = case.oracle.inputs([], case.prompt(QUESTIONS[1], image=False))
    assert answer.first_logits is not None
    assert relative_error(answer.first_logits, case.oracle.logits(inputs)) < 1e-3
    spec = needed(case.model.manifest.prompt, "prompt")
    assert list(answer.token_ids) == case.oracle.greedy(inputs, 32, (spec.eos_id, *spec.stop_ids))


def test_questions_about_an_encoded_image_are_answered_as_about_a_new_one(case: Case, photos: Photos) -> None:
    for source in (photos[1], photos[:2]):
        image = case.model.encode(source)
        for question in (*QUESTIONS, QUESTIONS[0]):
            cached, fresh = (case.model.query(each, question, LONG) for each in (image, source))
            assert cached.token_ids == fresh.token_ids
            np.testing.assert_array_equal(cached.first_logits, fresh.first_logits)


def test_a_second_question_costs_its_own_tokens(case: Case, photos: Photos) -> None:
    image = case.model.encode(photos[0])
    answer = case.model.query(image, QUESTIONS[0], LONG)
    ids = case.prompt(QUESTIONS[0])
    assert answer.usage.prompt_tokens == len(ids) - ids.index(PLACEHOLDER) - 1
    n_features = case.config.n_features + case.config.n_compressed
    assert [state.shape[1] for state in image.states] == [n_features + ids.index(PLACEHOLDER)]


@pytest.mark.parametrize("shape", [(56, 56), (57, 55), (300, 41), (1, 7), (480, 640)])
def test_frames_are_squeezed_as_torch_does_it(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = functional.interpolate(torch.tensor(pixels.transpose(2, 0, 1)[None]), size=(56, 56))[0]
    np.testing.assert_array_equal(squash(pixels, 56), expected.permute(1, 2, 0).numpy())
