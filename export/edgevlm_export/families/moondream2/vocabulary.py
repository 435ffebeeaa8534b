"""Whether a tokenizer.json belongs to a checkpoint: the wrong one gives garbage although every logit is right."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgevlm_export.families.moondream2.eras import GPT2_LINEAR, STARMIE, Era
from edgevlm_runtime.errors import CheckpointError

_END_OF_TEXT = "<|endoftext|>"
_GPT2_WAY = "give the one of vikhyatk/moondream2 at 2025-01-09 with --tokenizer FILE, or the checkpoint's --revision"
_STARMIE_WAY = "give tokenizer.json of moondream/starmie-v1 with --tokenizer FILE, or the checkpoint's --revision"


def is_starmie(tokenizer: Tokenizer) -> bool:
    """Whether it ends text with the id of the starmie tokenizer."""
    return bool(tokenizer.token_to_id(_END_OF_TEXT) == STARMIE.eos_id)


def check_tokenizer(path: Path, tokenizer: Tokenizer, era: Era, vocab_size: int) -> None:
    """Hold a tokenizer against the ids that the model was trained with.

    Raises:
        CheckpointError: it is of another model or generation; the message says which one to give.
    """
    way = _GPT2_WAY if era.eos_id == GPT2_LINEAR.eos_id else _STARMIE_WAY
    end = tokenizer.token_to_id(_END_OF_TEXT)
    if end is not None and end != era.eos_id:
        raise CheckpointError(
            f"{path}: is not this checkpoint's tokenizer ({_END_OF_TEXT} is {end}, the {era.name} revisions use "
            f"{era.eos_id}); {way}"
        )
    n_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if n_tokens > vocab_size:
        raise CheckpointError(f"{path}: has {n_tokens} tokens, the model {vocab_size}; {way}")
    for token_id in sorted(era.token_ids()):
        if tokenizer.id_to_token(token_id) is None:
            raise CheckpointError(f"{path}: has no token {token_id}, which the model's prompts use; {way}")
    _check_words(path, tokenizer, era, way)


def _check_words(path: Path, tokenizer: Tokenizer, era: Era, way: str) -> None:
    """The GPT-2 prompts are words, so that the right tokenizer must spell them."""
    prefix = era.templates.query.prefix
    if prefix != GPT2_LINEAR.templates.query.prefix:
        return
    spelled = tokenizer.decode(list(prefix))
    if spelled != "\n\nQuestion:":
        raise CheckpointError(f"{path}: spells the prompt {spelled!r} instead of '\\n\\nQuestion:'; {way}")
