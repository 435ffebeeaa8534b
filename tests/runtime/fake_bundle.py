"""A bundle whose graphs are files for the fake engine, and a byte-level tokenizer trained on a few words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgevlm_runtime.bundle import Bundle, open_bundle, write_manifest
from edgevlm_runtime.manifest import (
    SCHEMA_VERSION,
    GraphSpec,
    ImageSpec,
    Manifest,
    PromptSpec,
    Provenance,
    ReasoningSpec,
    RegionSpec,
    Template,
    TilingSpec,
)
from edgevlm_runtime.model import Model
from tests.runtime.fake_engine import BINS, CACHE, FakeEngine, TinyDecoder

EOS, ASK, ANSWER, THINK, COORDINATE, SIZE, GROUND, GROUND_END = range(8)
SPECIAL = ("<|eos|>", "<|ask|>", "<|answer|>", "<|think|>", "<|coordinate|>", "<|size|>", "<|ground|>", "<|end|>")
ROLES = (
    "vision",
    "project",
    "decoder",
    "region_coordinate_encoder",
    "region_coordinate_decoder",
    "region_size_encoder",
    "region_size_decoder",
)
CORPUS = ("how many red cups are there? two cups", "where is the blue circle? it is left of the box", "naïve 日本語 🙂")


def make_tokenizer(vocab: int = 320) -> Tokenizer:
    """Byte-level BPE, its special tokens the first eight ids; only some of them are marked as special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


PROMPT = PromptSpec(
    bos_id=EOS,
    eos_id=EOS,
    captions={"short": (ASK, 20, ANSWER), "normal": (ASK, 21, ANSWER)},
    query=Template(prefix=(ASK, 22), suffix=(ANSWER, ANSWER)),
    detect=Template(prefix=(ASK, 23), suffix=(ANSWER,)),
    point=Template(prefix=(ASK, 24), suffix=(ANSWER,)),
    reasoning=ReasoningSpec(
        template=Template(prefix=(ASK, 22), suffix=(ANSWER, THINK)),
        answer_prompt=(ANSWER,),
        answer_id=ANSWER,
        coordinate_id=COORDINATE,
        ground_start_id=GROUND,
        ground_end_id=GROUND_END,
        suppressed_ids=(EOS, SIZE),
    ),
    suppressed_ids=(ANSWER,),
    object_prefix=" ",
    spatial_point=(COORDINATE, COORDINATE),
    spatial_box=(COORDINATE, COORDINATE, SIZE),
)
REGION = RegionSpec(coordinate_bins=BINS, size_bins=BINS, size_scale="log", max_objects=4)
MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    name="tiny",
    family="fake",
    description="for tests",
    precision="fp32",
    tasks=("caption", "query", "detect", "point"),
    graphs={role: GraphSpec(file=f"{role}.onnx", precision="fp32", inputs=(), outputs=()) for role in ROLES},
    files={},
    provenance=Provenance(source="tests", revision="1", license="none", date="2026-01-01T00:00:00Z", tools={}),
    image=ImageSpec(
        crop_px=6,
        resample="lanczos",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tiling=TilingSpec(patch_px=2, margin_patches=1, max_crops=4),
    ),
    cache=CACHE,
    prompt=PROMPT,
    region=REGION,
    tokenizer="tokenizer.json",
    embedding="embedding.npy",
)


def write_bundle(root: Path, prompt: PromptSpec = PROMPT, **changes: object) -> Bundle:
    """A complete bundle in an empty folder."""
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(root / "tokenizer.json"))
    np.save(root / "embedding.npy", TinyDecoder(tokenizer.get_vocab_size()).table)
    for role in ROLES:
        (root / f"{role}.onnx").write_bytes(b"a graph for the fake engine")
    write_manifest(root, replace(MANIFEST, prompt=prompt, **changes))  # type: ignore[arg-type]
    return open_bundle(root)


def make_model(bundle: Bundle, script: dict[int, int] | None = None) -> tuple[Model, TinyDecoder]:
    """A model on a fake engine, and its decoder, whose script can be changed at any time."""
    decoder = TinyDecoder(make_tokenizer().get_vocab_size(), script or {})
    return Model(bundle, FakeEngine(decoder)), decoder
