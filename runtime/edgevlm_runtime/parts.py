"""What a model consists of, opened from its bundle: a decoder and all around it, or encoders of images and texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.decoder import Decoder, Session
from edgevlm_runtime.embedding import open_embedding
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import DamagedBundle, InvalidOption
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image_encoder import ImageEncoder
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.manifest import CacheSpec, PromptSpec, Role
from edgevlm_runtime.prefixes import Prefixes
from edgevlm_runtime.prefuse import MAX_TOKENS, Fuser
from edgevlm_runtime.prompts import Prompt, Prompts, before_image, control_ids
from edgevlm_runtime.reasoning import Thoughts
from edgevlm_runtime.regions import Regions
from edgevlm_runtime.text_encoder import TextEncoder
from edgevlm_runtime.tokenizer import TextTokenizer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ReadImage:
    """An image that the decoder has read: its tokens (tokens, dim), and its prefix with the words before them.

    `cache` holds the prefix; `states` are as in `FusedFrames`.
    """

    tokens: FloatArray
    prefix: FloatArray
    cache: KVCache
    states: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """The half of a model that reads and writes; all of it is shared by threads."""

    decoder: Decoder
    tokenizer: TextTokenizer
    prompts: Prompts
    spec: PromptSpec
    prefixes: Prefixes
    regions: Regions | None
    fuser: Fuser | None = None

    def embed(self, prompt: Prompt, states: tuple[FloatArray, ...] = ()) -> FloatArray:
        """A prompt to float32 embeddings (tokens, dim), its coordinates and sizes in their places.

        With the `states` of an image they are mixed with it.
        """
        embeddings = self.decoder.embed(prompt.ids)
        if prompt.coordinates:
            positions, values = zip(*prompt.coordinates, strict=True)
            embeddings[list(positions)] = self.need_regions().encode_coordinates(values)
        if prompt.sizes:
            positions, sizes = zip(*prompt.sizes, strict=True)
            embeddings[list(positions)] = self.need_regions().encode_sizes(sizes)
        return needed(self.fuser, "fusion").mix(prompt.ids, embeddings, states) if states else embeddings

    def read_image(self, frames: Iterable[FloatArray]) -> ReadImage:
        """Read the tokens (tokens, dim) of an image, or of each of its frames; raises as `Decoder.run`."""
        ids = before_image(self.spec)
        before = self.decoder.embed(ids)
        if self.fuser is None:
            (tokens,) = frames
            return self._read(before, tokens)
        fused = self.fuser.read(frames, ids, before)
        return self._read(fused.before, fused.tokens, fused.states)

    def read_prefix(self, prefix: FloatArray) -> KVCache:
        """A new cache that holds a prefix (tokens, dim), which is an image and the words before it."""
        cache = self.decoder.new_cache()
        cache.require(len(prefix))
        if self.spec.image_attention == "bidirectional":
            self.decoder.run(prefix, cache, bidirectional=True)
            return cache
        for start in range(0, len(prefix), MAX_TOKENS):
            self.decoder.run(prefix[start : start + MAX_TOKENS], cache)
        return cache

    def _read(self, before: FloatArray, tokens: FloatArray, states: tuple[FloatArray, ...] = ()) -> ReadImage:
        prefix = np.concatenate((before, tokens))
        return ReadImage(tokens=tokens, prefix=prefix, cache=self.read_prefix(prefix), states=states)

    def thoughts(self, session: Session) -> Thoughts:
        """What the model will think in a session; raises DamagedBundle where the manifest has no way of thinking."""
        return Thoughts(needed(self.spec.reasoning, "prompt.reasoning"), session, self.need_regions())

    def need_regions(self) -> Regions:
        """The regions, which the manifest's prompts rely on.

        Raises:
            DamagedBundle: it describes none.
        """
        return needed(self.regions, "region")


def open_text(bundle: Bundle, graphs: Graphs, context: int | None = None) -> TextParts:
    """Open the decoder and all that it needs; the region graphs are opened when they are used.

    `context` as in LoadOptions.

    Raises:
        DamagedBundle: a part is missing from the manifest, or its file can not be read.
        EngineError: the engine can not open the decoder.
        InvalidOption: `context` is more than the model knows.
    """
    manifest = bundle.manifest
    spec, cache = needed(manifest.prompt, "prompt"), needed(manifest.cache, "cache")
    _check_context(context, cache, manifest.name)
    path = bundle.path(needed(manifest.tokenizer, "tokenizer"))
    graphs.prefetch("decoder")  # while the tokenizer is read
    tokenizer = TextTokenizer(path, control_ids(spec))
    embedding = open_embedding(bundle.path(needed(manifest.embedding, "embedding")))
    decoder = Decoder(graphs.open("decoder"), embedding, cache, context)
    return TextParts(
        decoder=decoder,
        tokenizer=tokenizer,
        prompts=Prompts(spec, tokenizer),
        spec=spec,
        prefixes=Prefixes(decoder),
        regions=None if manifest.region is None else Regions(manifest.region, graphs.open),
        fuser=None if manifest.fusion is None else Fuser(manifest.fusion, partial(graphs.open, "prefuse")),
    )


def _check_context(context: int | None, cache: CacheSpec, name: str) -> None:
    if context is not None and context > cache.max_context:
        raise InvalidOption(f"context is {context}, but {name} knows {cache.max_context} positions at most")


def open_image_encoder(bundle: Bundle, graphs: Graphs, role: Role) -> ImageEncoder:
    """Open the graph of images of that role.

    Raises:
        DamagedBundle: the manifest does not describe it as one.
        EngineError: the engine can not open it.
    """
    graph = graphs.open(role)
    return ImageEncoder(needed(bundle.manifest.image, "image"), graph, bundle.manifest.graphs[role])


def open_text_encoder(bundle: Bundle, graphs: Graphs) -> TextEncoder:
    """Open the graph of texts and its tokenizer; raises as `open_image_encoder`."""
    manifest = bundle.manifest
    tokenizer = TextTokenizer(bundle.path(needed(manifest.tokenizer, "tokenizer")))
    return TextEncoder(needed(manifest.text, "text"), tokenizer, graphs.open("text"))


def needed(part: T | None, name: str) -> T:
    """A part of the manifest that others rely on.

    Raises:
        DamagedBundle: it is missing.
    """
    if part is None:
        raise DamagedBundle(f"manifest.json: {name} is missing, but a task needs it; export the model again")
    return part
