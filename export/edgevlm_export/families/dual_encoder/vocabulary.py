"""The ids that a text tower expects: which one ends a text, and which ones come after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from edgevlm_export.checkpoint import read_json
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import TextSpec

_LEGACY_END_ID = 2
"""In configs of CLIP from before transformers 4.31: the end of a text is where its id is highest."""
_ENDS = ("<|endoftext|>", "</s>", "<eos>")
_PAD = "<pad>"


def clip_text(path: Path, tokenizer: Tokenizer, text_config: Any) -> TextSpec:
    """What a CLIP text tower with that tokenizer.json expects.

    Raises:
        CheckpointError: the tokenizer is of another model, or does not end texts.
    """
    end_id = _end_id(path, tokenizer, text_config.vocab_size)
    legacy = text_config.eos_token_id == _LEGACY_END_ID
    expected = tokenizer.get_vocab_size(with_added_tokens=True) - 1 if legacy else text_config.eos_token_id
    if end_id != expected:
        raise CheckpointError(
            f"{path}: ends a text with {end_id}, the model looks for {expected}; give the model's own with --tokenizer"
        )
    return TextSpec(
        context=text_config.max_position_embeddings,
        pad_id=_pad_id(path, tokenizer, end_id),
        end_id=end_id,
        pad_to_context=False,
    )


def siglip_text(path: Path, tokenizer: Tokenizer, text_config: Any) -> TextSpec:
    """What a SigLIP text tower expects: SigLIP 2 has Gemma's tokenizer, and keeps punctuation.

    Raises:
        CheckpointError: the tokenizer is of another model, or does not end texts.
    """
    end_id = _end_id(path, tokenizer, text_config.vocab_size)
    first = isinstance(tokenizer.model, Unigram)
    pad_id = tokenizer.token_to_id(_PAD)
    return TextSpec(
        context=text_config.max_position_embeddings,
        pad_id=_pad_id(path, tokenizer, end_id if first or pad_id is None else pad_id),
        end_id=end_id,
        pad_to_context=True,
        lowercase=True,
        strip_punctuation=first,
    )


def _end_id(path: Path, tokenizer: Tokenizer, n_tokens: int) -> int:
    """The id that tokenizer.json puts after a text."""
    # Tokens added to a vocabulary come out of no text here.
    found = tokenizer.get_vocab_size(with_added_tokens=False)
    if found > n_tokens:
        raise CheckpointError(
            f"{path}: has {found} tokens, the model {n_tokens}; give the model's own with --tokenizer"
        )
    ids = tokenizer.encode("a").ids
    last = tokenizer.id_to_token(ids[-1]) if ids else None
    if last not in _ENDS:
        raise CheckpointError(f"{path}: ends a text with {last!r}, expected one of {', '.join(_ENDS)}")
    return int(ids[-1])


def _pad_id(path: Path, tokenizer: Tokenizer, default: int) -> int:
    """Of the token that tokenizer_config.json beside it names, or else the default."""
    config = path.with_name("tokenizer_config.json")
    token = read_json(config).get("pad_token") if config.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    if content is None:
        return default
    pad_id = tokenizer.token_to_id(str(content))
    if pad_id is None:
        raise CheckpointError(f"{config}: pad_token {content!r} is not in {path.name}")
    return int(pad_id)
