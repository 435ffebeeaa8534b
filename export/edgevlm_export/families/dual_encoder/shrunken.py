"""Tiny random CLIP and SigLIP checkpoints in their published layout, for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from edgevlm_export.families.random_published import write_random

_SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MERGES = (("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("p", "h"), ("o", "f</w>"))
_WORDS = ("▁a", "▁photo", "▁of", "▁this", "▁is", "▁cat", "▁dog", "▁red", "▁the", "s", "ing")


def write_clip(out: Path) -> None:
    """CLIP for images of 32 pixels and texts of 20 tokens, with the activation and tokenizer of OpenAI's."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer()
    end_id = tokenizer.get_vocab_size() - 1
    config = {
        "projection_dim": 32,
        "vision_config": {**_SIZES, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        "text_config": {
            **_SIZES,
            "vocab_size": end_id + 1,
            "max_position_embeddings": 20,
            "bos_token_id": end_id - 1,
            "eos_token_id": end_id,
            "hidden_act": "quick_gelu",
        },
    }
    write_random(out, "CLIPModel", config, {"logit_scale": math.log(100)})
    _write_json(
        out / "preprocessor_config.json",
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32, "resample": 3},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    _write_json(out / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20, **tokens})


def write_siglip(out: Path) -> None:
    """SigLIP for images of 32 pixels and texts of 16 tokens, with a tokenizer like the first version's."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = siglip_tokenizer()
    config = {
        "vision_config": {**_SIZES, "image_size": 32, "patch_size": 8},
        "text_config": {
            **_SIZES,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 16,
            "projection_size": _SIZES["hidden_size"],
        },
    }
    write_random(out, "SiglipModel", config, {"logit_scale": math.log(100), "logit_bias": -10.0})
    _write_json(
        out / "preprocessor_config.json",
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    _write_json(out / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16, **tokens})


def clip_tokenizer() -> Tokenizer:
    """Lowercase words in bytes and a few merges, between the two last ids of the vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in _MERGES)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocab = {token: i for i, token in enumerate([*tokens, start, end])}
    model = BPE(vocab=vocab, merges=list(_MERGES), end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = RobertaProcessing(
        sep=(end, vocab[end]), cls=(start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (start, end)])
    return tokenizer


def siglip_tokenizer() -> Tokenizer:
    """A unigram model of a few words and all printable ASCII characters, which ends texts."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    rare = [(piece, -8.0) for piece in ("▁", *characters)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -3.0) for word in _WORDS if len(word) > 1), *rare]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", 1)])
    tokenizer.decoder = MetaspaceDecoder(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "</s>", "<unk>")])
    return tokenizer


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
