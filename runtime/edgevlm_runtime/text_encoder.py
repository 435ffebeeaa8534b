"""Words -> one embedding for each text: for models that compare texts with images.

Dimensions: texts, tokens, dim.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines import FloatArray, Graph
from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.manifest import TextSpec
from edgevlm_runtime.tokenizer import TextTokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextEncoder:
    """The graph `text` with its tokenizer and what the manifest says of texts. Threads may share it."""

    def __init__(self, spec: TextSpec, tokenizer: TextTokenizer, graph: Graph) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._graph = graph

    def ids(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """See `token_ids`."""
        return token_ids(self._spec, self._tokenizer, texts)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings float32 (texts, dim) as the graph gives them, of at least one text.

        Raises:
            InvalidOption: a text is not valid Unicode.
            EngineError: the graph failed, or gave something else.
        """
        # One text a call: the same bits whatever the other texts are, and no padding.
        return np.concatenate([self._embed_one(text) for text in texts])

    def _embed_one(self, text: str) -> FloatArray:
        outputs = self._graph.run({"token_ids": self.ids([text])})
        embedding = outputs.get("embeddings")
        if embedding is None or embedding.ndim != 2 or len(embedding) != 1:
            found = "nothing" if embedding is None else embedding.shape
            raise EngineError(f"text graph: embeddings are {found} where (1, dim) is needed; export the model again")
        return embedding


def token_ids(spec: TextSpec, tokenizer: TextTokenizer, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Ids (texts, tokens), cut and padded as the manifest says.

    Raises:
        InvalidOption: a text is not valid Unicode.
    """
    rows = [_cut(tokenizer.encode(_plain(text, spec), framed=True), spec) for text in texts]
    length = spec.context if spec.pad_to_context else max(map(len, rows), default=0)
    ids = np.full((len(rows), length), spec.pad_id, np.int64)
    for row, text_ids in zip(ids, rows, strict=True):
        row[: len(text_ids)] = text_ids
    return ids


def _plain(text: str, spec: TextSpec) -> str:
    """A text without what the model's tokenizer leaves out before it looks for words."""
    if spec.lowercase:
        text = text.lower()
    if spec.strip_punctuation:
        text = re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()
    return text


def _cut(ids: tuple[int, ...], spec: TextSpec) -> tuple[int, ...]:
    """At most `context` ids, the end of the text kept."""
    if len(ids) <= spec.context:
        return ids
    if spec.end_id is None:
        return ids[: spec.context]
    return (*ids[: spec.context - 1], spec.end_id)
