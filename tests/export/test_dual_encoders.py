"""CLIP and SigLIP: graphs, images and token ids against transformers' own classes, reading the same folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.dual_encoder.shrunken import siglip_tokenizer
from edgevlm_export.families.family import ImageGraph, ImageRecipe, ReadOptions
from edgevlm_export.families.processor import read_image_spec
from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import CenterCropSpec, TextSpec
from edgevlm_runtime.preprocess import prepare_image
from edgevlm_runtime.text_encoder import token_ids
from edgevlm_runtime.tokenizer import TextTokenizer

DUAL = ("clip", "siglip")
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
PROCESSORS = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
TEXTS = (
    "a cat",
    "A photo of  a DOG!",
    "",
    "two cats, one dog: what's the difference? It's 3 o'clock, and this text is longer than the model reads.",
)
TOLERANCE = 1e-5
# All that computes on an NPU; nothing of shapes, and Gelu in one node.
STATIC = {"Conv", "Reshape", "Transpose", "Concat", "Add", "LayerNormalization", "MatMul", "Mul", "Softmax", "Sigmoid"}
STATIC |= {"Gelu", "Gather", "Gemm", "Squeeze", "Unsqueeze"}

Session = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> None:
    declare_missing_operators()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dual")
    for family in DUAL:
        FAMILIES[family].shrink(root / family)
    return {family: root / family for family in DUAL}


@pytest.fixture(params=DUAL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[Callable[[str, int, bool], Session]]:
    """A graph of a family, by index: 0 the images', 1 the texts'; traced once."""

    @cache
    def open_session(family: str, index: int, fixed: bool) -> Session:
        return session_of(read(folders[family]).graphs[index], fixed)

    yield open_session
    open_session.cache_clear()


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


def pictures() -> list[Image.Image]:
    """Wide, high, square and tiny ones."""
    generator = np.random.default_rng(3)
    sizes = ((45, 80), (91, 33), (32, 32), (7, 9))
    small = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(noise).resize(size[::-1], 3) for noise, size in zip(small, sizes, strict=True)]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(folders[family], tmp_path / family))


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


def their_ids(folders: dict[str, Path], family: str, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    folder = folders[family]
    if family == "clip":
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=20, return_tensors="np")
        return np.asarray(found["input_ids"])
    # transformers has no fast tokenizer for SigLIP; its slow one is held against ours with a sentencepiece model below.
    return token_ids(text_spec(read(folder)), tokenizer_of(folder), texts)


def test_clip_token_ids(folders: dict[str, Path]) -> None:
    texts = [*TEXTS, "Ünïcödé  naïve\tCAFÉ 12", "phone of phones", "cat " * 30]
    ours = token_ids(text_spec(read(folders["clip"])), tokenizer_of(folders["clip"]), texts)
    assert_array_equal(ours, their_ids(folders, "clip", texts))


def test_siglip_token_ids(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """A sentencepiece model in transformers' SiglipTokenizer, and the same pieces as a tokenizer.json."""
    import sentencepiece

    folder = copy("siglip")
    corpus = ["a photo of a cat", "this is a photo of two dogs", "it's a red bicycle, isn't it", "what a day it was"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=32,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = siglip_tokenizer()
    tokenizer.model = Unigram(vocab, unk_id=2, byte_fallback=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=16)
    texts = ["A photo of a CAT.", "it's  (red)!", "", "what -- a; day", "photo " * 40]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=16, return_tensors="np")["input_ids"]
    assert_array_equal(token_ids(text_spec(read(folder)), tokenizer_of(folder), texts), expected)


def test_siglip_2_keeps_punctuation_and_has_its_own_padding(copy: Callable[[str], Path]) -> None:
    folder = copy("siglip")
    (folder / "tokenizer_config.json").unlink()
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", "▁", *letters])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", pair=None, special_tokens=[("<eos>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<eos>", "<unk>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = text_spec(read(folder))
    assert spec == TextSpec(context=16, pad_id=0, end_id=1, pad_to_context=True, lowercase=True)
    ids = token_ids(spec, tokenizer_of(folder), ["Hi!"])[0]
    assert ids.tolist() == [vocab["h"], vocab["i"], vocab["!"], 1, *[0] * 12]


def test_configs_from_before_the_end_of_text_was_right(copy: Callable[[str], Path]) -> None:
    """OpenAI's own: eos_token_id is 2, and the highest id of a text is where it is read."""
    folder = copy("clip")
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**config["text_config"], "eos_token_id": 2})
    edit_json(folder / "tokenizer_config.json", pad_token="!</w>")
    recipe = read(folder)
    ids = token_ids(text_spec(recipe), tokenizer_of(folder), TEXTS)
    assert len(set(ids[0])) > len(set(ids[0][:3])) and ids[0][-1] != text_spec(recipe).end_id
    with torch.no_grad():
        expected = original(folder).get_text_features(torch.from_numpy(ids)).numpy()
    assert_allclose(session_of(recipe.graphs[1], False)(ids), expected, atol=TOLERANCE, rtol=TOLERANCE)


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


def test_fixed_graphs_have_single_operators(folders: dict[str, Path], family: str) -> None:
    model = read(folders[family]).graphs[0].trace(True)
    assert {node.op_type for node in model.graph} <= STATIC
    assert model.opset_imports == {"": 20}
    activation = "Sigmoid" if family == "clip" else "Gelu"
    n_activations = sum(node.op_type == activation for node in model.graph)
    assert n_activations == (2 if family == "clip" else 3)
    values = (*model.graph.inputs, *model.graph.outputs)
    assert [value.name for value in values] == ["images", "embeddings"]
    assert all(isinstance(axis, int) for value in values for axis in value.shape or ())


def test_free_axes_are_named(folders: dict[str, Path]) -> None:
    vision, text = read(folders["clip"]).graphs
    for graph in (vision, text):
        model = graph.trace(False)
        specs = (*graph.inputs, *graph.outputs)
        for value, spec in zip((*model.graph.inputs, *model.graph.outputs), specs, strict=True):
            assert value.name == spec.name
            assert [str(axis) for axis in value.shape or ()] == [str(axis) for axis in spec.shape]
        assert not [name for name in model.graph.initializers if name.startswith("onnx::")]


def test_shapes_of_images_are_not_computed(folders: dict[str, Path]) -> None:
    """But for the number of images, to which the token before the patches is repeated."""
    operators = [node.op_type for node in read(folders["clip"]).graphs[0].trace(False).graph]
    assert operators.count("Shape") == 1 and operators.count("Concat") == 2


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


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["visual_projection.kernel"] = tensors.pop("visual_projection.weight")


def truncate(tensors: dict[str, torch.Tensor]) -> None:
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name][:50].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, r"1 missing \(visual_projection.weight\) and 1 unknown \(visual_projection.kernel\)"),
        (truncate, r"layers.1.mlp.fc1.weight has shape \(50, 48\), expected \(96, 48\)"),
    ],
)
def test_tensors_that_do_not_fit(
    copy: Callable[[str], Path], damage: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    folder = copy("clip")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_values_that_are_not_finite(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "logit_scale": torch.tensor(1e9)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor logit_scale: is 1e\+09, expected at most 100"):
        read(folder)
    tensors["visual_projection.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor visual_projection.weight: has values that are not finite"):
        read(folder).graphs[0].trace(False)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_missing_file_is_named(copy: Callable[[str], Path], family: str, name: str) -> None:
    folder = copy(family)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{folder / name}: no such file"):
        FAMILIES[family].read(open_checkpoint(folder), ReadOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rescale": False}, "do_rescale is False"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"rescale_factor": 0.5}, "rescale_factor is 0.5, expected 1 / 255"),
        ({"resample": 0}, r"resample is 0, expected one of 1 \(lanczos\), 2 \(bilinear\), 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 24}}, "smaller than crop_size 32"),
        ({"size": {"height": 32, "width": 48}}, "expected a square"),
        ({"crop_size": {"height": 24, "width": 24}}, "makes images of 24 pixels, config.json says 32"),
        ({"do_center_crop": False}, "without do_center_crop"),
        ({"image_mean": 0.5}, "image_mean is 0.5, expected 3 numbers"),
        ({"image_std": [1, 0, 1]}, "image_std has a zero"),
        ({"image_processor_type": "Pix2StructImageProcessor"}, "'Pix2StructImageProcessor' is not known here"),
    ],
)
def test_preprocessing_that_can_not_be_done(copy: Callable[[str], Path], changes: dict[str, Any], message: str) -> None:
    folder = copy("clip")
    edit_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_configs_that_do_not_fit(copy: Callable[[str], Path], family: str) -> None:
    folder = copy(family)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "num_attention_heads": 5})
    with pytest.raises(CheckpointError, match=r"config.json: vision can not be built .*divisible"):
        read(folder)
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "num_channels": 1})
    with pytest.raises(CheckpointError, match=r"images are 32 x 1 channels"):
        read(folder)
    edit_json(folder / "config.json", model_type="siglip2")
    with pytest.raises(CheckpointError, match=f"model_type is 'siglip2', expected '{family}'"):
        FAMILIES[family].read(open_checkpoint(folder), ReadOptions())


def test_tokenizers_of_other_models(copy: Callable[[str], Path], folders: dict[str, Path]) -> None:
    clip, siglip = copy("clip"), folders["siglip"]
    with pytest.raises(CheckpointError, match=r"ends a text with 1, the model looks for 519"):
        read(clip, tokenizer=siglip / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"has 520 tokens, the model \d+"):
        read(siglip, tokenizer=clip / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(clip / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A", pair=None, special_tokens=[])
    tokenizer.save(str(clip / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: ends a text with 'a</w>'"):
        read(clip)


def test_an_export_is_silent(folders: dict[str, Path]) -> None:
    """In a process of its own: importing optimum and transformers is part of it."""
    script = (
        "import sys; from pathlib import Path\n"
        "from edgevlm_export.checkpoint import open_checkpoint\n"
        "from edgevlm_export.families import FAMILIES\n"
        "from edgevlm_export.families.family import ReadOptions\n"
        "recipe = FAMILIES['clip'].read(open_checkpoint(Path(sys.argv[1])), ReadOptions())\n"
        "assert len(recipe.graphs[1].trace(False).graph) > 50\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folders["clip"]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
