"""A bundle in float32, asked through the runtime, against transformers' classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgevlm_export.families.tinygpt_v.random_weights import TINY, Form, write_random
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_export.round_int4 import int4_names
from edgevlm_export.scene import draw_image
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from tests.export.tinygpt_v.conftest import Published, make_oracle, read, relative_error

QUESTION = "What is this?"
PROMPT = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    f"Please answer my questions.###Human: <Img><ImageHere></Img> {QUESTION}###Assistant: "
)


def make_bundle(published: Published, out: Path, precision: Precision, *, openvino: bool = False) -> Path:
    request = ExportRequest(
        name="tiny",
        family="tinygpt_v",
        source=published.folder,
        out=out,
        precision=precision,
        prompts="chat",
        openvino=openvino,
    )
    return export(request).root


@pytest.fixture(scope="module")
def model(stage_3: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Of stage 3; the contract tests export stage 4."""
    with load(make_bundle(stage_3, tmp_path_factory.mktemp("bundles") / "fp32", "fp32")) as opened:
        yield opened


def test_image_tokens(model: Model, stage_3: Published) -> None:
    oracle = stage_3.oracle
    tokens = oracle.image_tokens(oracle.features(oracle.pixels(Image.open(io.BytesIO(draw_image())))))
    assert relative_error(torch.tensor(model.encode(draw_image()).embeddings), tokens) < 1e-3


def test_first_logits_and_greedy_tokens(model: Model, stage_3: Published) -> None:
    oracle = stage_3.oracle
    sequence = oracle.prefix(Image.open(io.BytesIO(draw_image())), PROMPT)
    logits = model.next_token_logits(draw_image(), QUESTION)
    assert relative_error(torch.from_numpy(logits), oracle.logits(sequence)[-1]) < 1e-3
    answer = model.query(draw_image(), QUESTION, GenerateOptions(max_tokens=32))
    spec = model.manifest.prompt
    assert spec is not None
    expected = oracle.greedy(sequence, 32, (spec.eos_id, *spec.stop_ids))
    assert list(answer.token_ids) == expected and len(expected) == 32


def test_int4_has_the_large_matrices_in_4_bits(stage_4: Published) -> None:
    """The decoder's but its head, and the image encoder's MLPs."""
    names = int4_names(read(stage_4.folder))
    expected = {f"text.blocks.{i}.{m}.weight" for i in (0, 1) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert names == expected | {f"vision.blocks.{i}.mlp.{m}.weight" for i in (0, 1) for m in ("fc1", "fc2")}


def test_heads_that_engines_do_not_rotate(tmp_path: Path) -> None:
    """Of 40 dimensions, which is no multiple of 16."""
    config = replace(TINY, text=replace(TINY.text, n_heads=4, rotary_dim=16))
    write_random(tmp_path / "files", config, Form(stage=3), seed=5)
    published = Published(tmp_path / "files", make_oracle(tmp_path / "files", config))
    bundle = make_bundle(published, tmp_path / "bundle", "fp32", openvino=True)
    sequence = published.oracle.prefix(Image.open(io.BytesIO(draw_image())), PROMPT)
    for engine in ("onnxruntime", "openvino"):
        with load(bundle, LoadOptions(engine=engine)) as opened:
            logits = opened.next_token_logits(draw_image(), QUESTION)
            assert relative_error(torch.from_numpy(logits), published.oracle.logits(sequence)[-1]) < 1e-3
            answer = opened.query(draw_image(), QUESTION, GenerateOptions(max_tokens=8))
        assert list(answer.token_ids) == published.oracle.greedy(sequence, 8, ())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_bundles_are_near(stage_3: Published, model: Model, tmp_path: Path, precision: Precision) -> None:
    """Beyond what the export verified: the whole way from pixels to logits."""
    exact = model.next_token_logits(draw_image(), QUESTION)
    with load(make_bundle(stage_3, tmp_path / precision, precision)) as quantized:
        logits = quantized.next_token_logits(draw_image(), QUESTION)
    cosine = float(np.dot(exact, logits) / np.linalg.norm(exact) / np.linalg.norm(logits))
    assert cosine > (0.999 if precision == "int8" else 0.98)
