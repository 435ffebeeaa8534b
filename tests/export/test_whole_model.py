"""An exported float32 bundle, run by the runtime, against the NumPy oracle from pixels to words and boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm_export import pipeline, text_pipeline
from edgevlm_export.families.family import Recipe
from edgevlm_export.scene import draw_image
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import PromptSpec
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.preprocess import make_crops
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.export.conftest import Trace, skip_verification
from tests.oracles.moondream2_numpy import Array, Oracle, Sizes

SIZES = Sizes(heads=2, kv_heads=1, vision_heads=2, patch=14, crop=70, margin=1)
OPTIONS = GenerateOptions(max_tokens=8, max_objects=3, max_crops=6)


@pytest.fixture(scope="module")
def model(tiny: Path, trace_once: Trace, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("whole") / "fp32"
    request = pipeline.ExportRequest(name="tiny", family="moondream2", source=tiny, out=out, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pipeline, "trace", trace_once)
        patch.setattr(text_pipeline, "verify_export", skip_verification)
        return load(pipeline.export(request))


@pytest.fixture(scope="module")
def oracle(recipe: Recipe) -> Oracle:
    return Oracle(SIZES, {name: recipe.weights[name].numpy() for name in recipe.weights})


@pytest.fixture(scope="module")
def prefix(model: Model, oracle: Oracle) -> Array:
    assert model.manifest.image is not None
    crops, grid = make_crops(load_image(draw_image()), model.manifest.image, OPTIONS.max_crops)
    assert (grid.rows, grid.cols) == (2, 2)
    return oracle.prefix(prompt_spec(model).bos_id, oracle.image_tokens(crops, grid.rows, grid.cols))


def prompt_spec(model: Model) -> PromptSpec:
    assert model.manifest.prompt is not None
    return model.manifest.prompt


def test_image_tokens(model: Model, prefix: Array) -> None:
    tokens = model.encode(draw_image(), max_crops=OPTIONS.max_crops).embeddings
    assert np.abs(tokens - prefix[1:]).max() < 1e-4 * np.abs(prefix).max()


def test_captions_and_answers(model: Model, oracle: Oracle, prefix: Array, recipe: Recipe) -> None:
    spec = prompt_spec(model)
    assert recipe.tokenizer is not None
    question = Prompts(spec, TextTokenizer(recipe.tokenizer)).query("what?").ids
    image = model.encode(draw_image(), max_crops=OPTIONS.max_crops)
    given = (model.caption(image, "short", OPTIONS), model.query(image, "what?", OPTIONS))
    for answer, prompt in zip(given, (spec.captions["short"], question), strict=True):
        expected = oracle.greedy(
            prefix, list(prompt), max_tokens=8, eos_id=spec.eos_id, suppressed_ids=spec.suppressed_ids
        )
        assert list(answer.token_ids) == expected


def test_boxes_and_points(model: Model, oracle: Oracle, prefix: Array, recipe: Recipe) -> None:
    spec = prompt_spec(model)
    assert recipe.tokenizer is not None and spec.detect is not None and spec.point is not None
    words = TextTokenizer(recipe.tokenizer).encode(" cup")
    image = model.encode(draw_image(), max_crops=OPTIONS.max_crops)
    for template, scale in ((spec.detect, "log"), (spec.point, None)):
        prompt = [*template.prefix, *words, *template.suffix]
        expected = oracle.places(prefix, prompt, eos_id=spec.eos_id, max_objects=3, sizes=scale)
        found: list[tuple[float, ...]]
        if scale:
            boxes = model.detect(image, "cup", OPTIONS).objects
            found = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes]
        else:
            found = [(point.x, point.y) for point in model.point(image, "cup", OPTIONS).points]
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
