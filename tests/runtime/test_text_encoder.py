"""Token ids against transformers' tokenizers, and embeddings that do not depend on the other texts of a call."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import EngineError, InvalidOption
from edgevlm_runtime.manifest import TextSpec
from edgevlm_runtime.text_encoder import TextEncoder, token_ids
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.image_bundle import DIM, TABLE, TEXT, WORDS, make_tokenizer, write_dual_encoder

TEXTS = ["a cat", "", "A RED bicycle, leaning!", "the cat sat " * 30, "naïve 日本語 🙂", "it's   2 cats\n\tand a dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizerFast, TextTokenizer]:
    """A tokenizer of CLIP's kind with a few merges, in transformers and from its tokenizer.json."""
    folder = tmp_path_factory.mktemp("clip")
    characters = list(bytes_to_unicode().values())
    merges = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>")]
    vocabulary = [*characters, *(f"{each}</w>" for each in characters), *("".join(merge) for merge in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    theirs = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    theirs.save_pretrained(folder)
    return theirs, TextTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("whole", [True, False])
def test_ids_are_transformers(clip: tuple[CLIPTokenizerFast, TextTokenizer], whole: bool) -> None:
    theirs, ours = clip
    spec = TextSpec(context=16, pad_id=theirs.pad_token_id, end_id=theirs.eos_token_id, pad_to_context=whole)
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:3]):
        wanted = theirs(
            texts, padding="max_length" if whole else True, truncation=True, max_length=16, return_tensors="np"
        )
        got = token_ids(spec, ours, texts)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, wanted["input_ids"])


def test_a_special_token_in_a_users_text_is_text(clip: tuple[CLIPTokenizerFast, TextTokenizer]) -> None:
    theirs, ours = clip
    end = theirs.eos_token_id
    spec = TextSpec(context=64, pad_id=end, end_id=end, pad_to_context=False)
    ids = token_ids(spec, ours, ["a <|endoftext|> b"])[0].tolist()
    assert ids.count(end) == 1 and ids[-1] == end


@settings(max_examples=100)
@given(st.text(st.sampled_from(string.ascii_letters + string.punctuation + " \t\n\u00a0ÄßΣ"), max_size=30))
def test_words_are_cleaned(text: str) -> None:
    spec = TextSpec(context=200, pad_id=0, end_id=None, pad_to_context=False, lowercase=True, strip_punctuation=True)
    recorder = Recorder()
    token_ids(spec, recorder, [text])  # type: ignore[arg-type]
    assert recorder.texts == [" ".join("".join(c for c in text.lower() if c not in string.punctuation).split())]


class Recorder:
    """A tokenizer that keeps what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str, *, framed: bool) -> tuple[int, ...]:
        assert framed
        self.texts.append(text)
        return (0,)


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    text = "red green blue a photo of a bicycle"
    kept = token_ids(TEXT, tokenizer, [text])[0]
    assert [WORDS[i] for i in kept] == ["<s>", "red", "green", "blue", "a", "photo", "</s>"]
    cut = token_ids(TextSpec(context=3, pad_id=1, end_id=None, pad_to_context=True), tokenizer, [text, ""])
    assert cut.tolist() == [[0, WORDS.index("red"), WORDS.index("green")], [0, 1, 1]]


def test_embeddings_do_not_depend_on_other_texts(tmp_path: Path) -> None:
    bundle = write_dual_encoder(tmp_path / "dual")
    graph = open_engine("onnxruntime", 1).open(bundle.path("text.onnx"))
    encoder = TextEncoder(TEXT, TextTokenizer(bundle.path("tokenizer.json")), graph)
    texts = ["red", "a photo of a blue bicycle . a a a", "green bicycle"]
    together = encoder.embed(texts)
    assert together.shape == (3, DIM) and together.dtype == np.float32
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder.embed([text])[0], row)
        np.testing.assert_allclose(row, TABLE[encoder.ids([text])[0]].mean(axis=0), rtol=1e-5)


def test_bad_texts_and_graphs(tmp_path: Path) -> None:
    bundle = write_dual_encoder(tmp_path / "dual")
    tokenizer = TextTokenizer(bundle.path("tokenizer.json"))
    with pytest.raises(InvalidOption, match="Unicode"):
        token_ids(TEXT, tokenizer, ["caf\udce9"])
    for outputs in ({}, {"embeddings": np.zeros((1, 2, 3), np.float32)}, {"embeddings": np.zeros((2, 3), np.float32)}):
        with pytest.raises(EngineError, match="embeddings are"):
            TextEncoder(TEXT, tokenizer, Stub(outputs)).embed(["a"])


class Stub:
    """A graph that always gives the same."""

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self._outputs = outputs

    def run(self, inputs: object, shared: object = ()) -> dict[str, np.ndarray]:
        return self._outputs
