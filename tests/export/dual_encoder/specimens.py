"""Shrunken CLIP and SigLIP: what reads them, here and in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import transformers
from PIL import Image

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ImageGraph, ImageRecipe, ReadOptions
from edgevlm_runtime.manifest import TextSpec
from edgevlm_runtime.text_encoder import token_ids
from edgevlm_runtime.tokenizer import TextTokenizer

DUAL = ("clip", "siglip")
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
TEXTS = (
    "a cat",
    "A photo of  a DOG!",
    "",
    "two cats, one dog: what's the difference? It's 3 o'clock, and this text is longer than the model reads.",
)
TOLERANCE = 1e-5

Session = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


def read(folder: Path, **options: Any) -> ImageRecipe:
    family = json.loads((folder / "config.json").read_text())["model_type"]
    recipe = FAMILIES["clip" if family == "clip" else "siglip"].read(open_checkpoint(folder), ReadOptions(**options))
    assert isinstance(recipe, ImageRecipe)
    return recipe


def session_of(graph: ImageGraph, fixed: bool) -> Session:
    proto = ir.to_proto(graph.trace(fixed))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = (spec.name for spec in graph.inputs)
    return lambda values: np.asarray(session.run(["embeddings"], {name: values})[0])


def original(folder: Path) -> Any:
    """The model as transformers itself loads it, with its own choice of attention."""
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, MODELS[config["model_type"]]).from_pretrained(folder).eval()


def tokenizer_of(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder / "tokenizer.json")


def text_spec(recipe: ImageRecipe) -> TextSpec:
    assert recipe.parts.text is not None
    return recipe.parts.text


def their_ids(folders: dict[str, Path], family: str, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    folder = folders[family]
    if family == "clip":
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=20, return_tensors="np")
        return np.asarray(found["input_ids"])
    # transformers has no fast tokenizer for SigLIP; its slow one is held against ours in test_token_ids.py.
    return token_ids(text_spec(read(folder)), tokenizer_of(folder), texts)


def pictures() -> list[Image.Image]:
    """Wide, high, square and tiny ones."""
    generator = np.random.default_rng(3)
    sizes = ((45, 80), (91, 33), (32, 32), (7, 9))
    small = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(noise).resize(size[::-1], 3) for noise, size in zip(small, sizes, strict=True)]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
