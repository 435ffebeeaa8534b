"""CLIP's and SigLIP's token ids against transformers' tokenizers, with tokenizers of every published kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing

from edgevlm_export.families.dual_encoder.shrunken import siglip_tokenizer
from edgevlm_runtime.manifest import TextSpec
from edgevlm_runtime.text_encoder import token_ids
from tests.export.dual_encoder.specimens import (
    TEXTS,
    TOLERANCE,
    edit_json,
    original,
    read,
    session_of,
    text_spec,
    their_ids,
    tokenizer_of,
)


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
