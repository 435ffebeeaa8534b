"""Every text survives the tokenizer; prompts follow the templates."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.tokenizer import SPECIAL_TOKENS, corpus, prompt_ids, train_tokenizer


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return train_tokenizer(corpus(30))


@given(st.text(max_size=40))
def test_round_trip(text: str) -> None:
    tokenizer = _tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(special in text for special in SPECIAL_TOKENS):
        assert tokenizer.decode(ids) == text
        assert all(i >= len(SPECIAL_TOKENS) for i in ids)


def test_special_ids() -> None:
    assert [_tokenizer().token_to_id(token) for token in SPECIAL_TOKENS] == list(range(16))


def test_prompts() -> None:
    tokenizer = _tokenizer()
    assert prompt_ids(tokenizer, "caption", "short") == [1, 10, 2, 11, 3]
    question = tokenizer.encode("what is it?").ids
    assert prompt_ids(tokenizer, "query", "what is it?") == [1, 14, 2, *question, 3, 3]
    assert prompt_ids(tokenizer, "point", "star") == [1, 8, 2, *tokenizer.encode(" star").ids, 3]
