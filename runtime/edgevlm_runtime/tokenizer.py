"""Text to token ids and back, piece by piece while an answer is being generated.

What a user writes is only ever text: no token that steers the model comes out of it. Prompts are put together in
prompts.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from edgevlm_runtime.errors import DamagedBundle, InvalidOption

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """A tokenizer.json, shared by threads.

    `control_ids` steer the model: their text, written by a user, is encoded as plain text, and they decode to
    nothing. The file's own special tokens are treated alike.

    Raises:
        DamagedBundle: the file can not be read as a tokenizer.
    """

    def __init__(self, path: Path, control_ids: Iterable[int] = ()) -> None:
        self._tokenizer = _open(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        controls = [added[token].content for token in set(control_ids) if token in added]
        self._tokenizer.add_special_tokens([AddedToken(text, special=True) for text in controls])
        # Despite its name: encode the text of special tokens like any other text.
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str, *, framed: bool = False) -> tuple[int, ...]:
        """A user's text to ids; `framed` by the special tokens that tokenizer.json puts around one, else without any.

        Raises:
            InvalidOption: the text has lone surrogates, as arguments that were not UTF-8 do.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidOption(f"the text is not valid Unicode at character {error.start}; give it as UTF-8") from None
        return tuple(self._tokenizer.encode(text, add_special_tokens=framed).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text, without special tokens; bytes that are not UTF-8 become replacement characters."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


class TextStream:
    """Ids to pieces of text, none of which cuts a character: together they are the text of all ids."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded together: some decoders look at the token before
        self._given = 0  # the text of ids before this one was given out

    def push(self, token_id: int) -> str:
        """The text that one more id completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        piece = self._piece()
        return "" if piece.endswith(REPLACEMENT) else self._give(piece)

    def flush(self) -> str:
        """What is left, with replacement characters for what was never completed."""
        return self._give(self._piece())

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._given])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]

    def _give(self, piece: str) -> str:
        if piece:
            self._context, self._given = self._given, len(self._ids)
        return piece


class StopScanner:
    """Ends a text where the first of several stop strings is complete, wherever the pieces are cut.

    What may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete, which is then `found`."""
        return self.found is not None

    def push(self, piece: str) -> str:
        """The text that is certain after one more piece; sets `stopped` when a stop string is complete."""
        text = self._held + piece
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.found = min(found)
            self._held = ""
            return text[:start]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def _open(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DamagedBundle(f"{path}: not a tokenizer ({error}); export the model again") from error
