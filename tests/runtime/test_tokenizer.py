"""Text to ids and back: streaming that cuts no character, stop strings, and no control tokens from a user."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgevlm_runtime.errors import DamagedBundle, InvalidOption
from edgevlm_runtime.tokenizer import REPLACEMENT, StopScanner, TextStream, TextTokenizer
from tests.runtime.fake_bundle import SPECIAL, make_tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(saved(make_tokenizer(), tmp_path_factory.mktemp("bytes")))


def stream(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [*(text.push(token) for token in ids), text.flush()]


# Ids beyond the vocabulary too: a decoder may have more rows than its tokenizer.
IDS = st.lists(st.integers(0, 340), max_size=60)


@settings(max_examples=200, deadline=None)
@given(ids=IDS)
@example(ids=[8 + 0xE3, 8 + 0x81])
def test_pieces_add_up_to_the_text_of_all_ids(text: TextTokenizer, ids: list[int]) -> None:
    assert "".join(stream(text, ids)) == text.decode(ids)


@settings(max_examples=100, deadline=None)
@given(written=st.text(max_size=40))
@example(written="日本語 🙂 naïve 👩‍👩‍👧")
def test_valid_text_never_shows_a_replacement_character(text: TextTokenizer, written: str) -> None:
    ids = list(text.encode(written))
    pieces = stream(text, ids)
    assert "".join(pieces) == written
    assert sum(piece.count(REPLACEMENT) for piece in pieces) == written.count(REPLACEMENT)


def test_an_incomplete_character_waits_and_comes_out_replaced_only_at_the_end(text: TextTokenizer) -> None:
    ids = list(text.encode("a🙂"))[:-1]
    pieces = stream(text, ids)
    assert pieces[0] == "a"
    assert set(pieces[1:-1]) == {""}
    assert set(pieces[-1]) == {REPLACEMENT}


def test_text_comes_as_soon_as_it_is_whole(text: TextTokenizer) -> None:
    pieces = stream(text, list(text.encode("how many cups")))
    assert "" not in pieces[:-1]
    assert pieces[-1] == ""


def test_decoders_that_look_at_the_token_before_keep_their_spaces(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "▁two": 1, "▁cups": 2, "</s>": 3, "s": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    text = TextTokenizer(saved(tokenizer, tmp_path))
    assert stream(text, [1, 2, 3, 3, 2, 4]) == ["two", " cups", "", "", " cups", "s", ""]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL, "a", " cups", "<|", "|>", "\n", "é"]), max_size=8))
def test_no_text_of_a_user_becomes_a_special_token(text: TextTokenizer, parts: list[str]) -> None:
    written = "".join(parts)
    ids = text.encode(written)
    assert not set(ids) & set(range(len(SPECIAL)))
    assert text.decode(ids) == written


def test_control_tokens_that_the_file_does_not_mark_as_special_are_guarded_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<secret>", "  "])
    secret, spaces = (tokenizer.token_to_id(token) for token in ("<secret>", "  "))
    path = saved(tokenizer, tmp_path)
    assert secret in TextTokenizer(path).encode("a<secret>")
    guarded = TextTokenizer(path, [secret, 70, 10**6])
    ids = guarded.encode("a<secret>  b")
    assert secret not in ids
    assert spaces in ids  # an added token that steers nothing is a word like any other
    assert guarded.decode(ids) == "a<secret>  b"
    assert guarded.decode([secret, *ids]) == "a<secret>  b"


def test_the_files_post_processor_truncation_and_padding_are_left_out(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(max_length=2)
    tokenizer.enable_padding(length=9, pad_id=0, pad_token=SPECIAL[0])
    text = TextTokenizer(saved(tokenizer, tmp_path))
    assert text.decode(text.encode("how many red cups are there")) == "how many red cups are there"
    assert 0 not in text.encode("a")


def test_lone_surrogates_are_refused(text: TextTokenizer) -> None:
    with pytest.raises(InvalidOption, match="not valid Unicode at character 3"):
        text.encode("caf\udce9")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b'{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_a_damaged_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DamagedBundle, match="not a tokenizer") as caught:
        TextTokenizer(path)
    assert "\n" not in str(caught.value)


def brute_force(written: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first prefix of the text that ends with a stop string."""
    for end in range(1, len(written) + 1):
        found = [len(stop) for stop in stops if written[:end].endswith(stop)]
        if found:
            return written[: end - max(found)], True
    return written, False


@settings(max_examples=250, deadline=None)
@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=8),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
@example(pieces=["a", "b", "a", "b", "b"], stops=["abb"])
@example(pieces=["aab", "ab"], stops=["baa", "ab", "b"])
def test_stop_strings_wherever_the_pieces_are_cut(pieces: list[str], stops: list[str]) -> None:
    scanner, out = StopScanner(stops), ""
    expected, stopped = brute_force("".join(pieces), stops)
    for piece in pieces:
        out += scanner.push(piece)
        assert expected.startswith(out)
        if scanner.stopped:
            break
    out += scanner.flush()
    assert (out, scanner.stopped) == (expected, stopped)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(piece) for piece in ("a", "bE", "c", "EN", "NE", "N")] == ["a", "b", "Ec", "", "ENN", ""]
    assert scanner.flush() == "EN"
    assert StopScanner([]).push("END") == "END"
