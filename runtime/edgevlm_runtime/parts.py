"""What a model consists of, opened from its bundle: a decoder and all around it, or encoders of images and texts."""

from __future__ import annotations

from dataclasses import dataclass
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
from edgevlm_runtime.prompts import Prompt, Prompts, control_ids
from edgevlm_runtime.reasoning import Thoughts
from edgevlm_runtime.regions import Regions
from edgevlm_runtime.text_encoder import TextEncoder
from edgevlm_runtime.tokenizer import TextTokenizer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """The half of a model that reads and writes; all of it is shared by threads."""

    decoder: Decoder
    tokenizer: TextTokenizer
    prompts: Prompts
    spec: PromptSpec
    regions: Regions | None

    def embed(self, prompt: Prompt) -> FloatArray:
        """A prompt to float32 embeddings (tokens, dim), its coordinates and sizes in their places."""
        embeddings = self.decoder.embed(prompt.ids)
        if prompt.coordinates:
            positions, values = zip(*prompt.coordinates, strict=True)
            embeddings[list(positions)] = self.need_regions().encode_coordinates(values)
        if prompt.sizes:
            positions, sizes = zip(*prompt.sizes, strict=True)
            embeddings[list(positions)] = self.need_regions().encode_sizes(sizes)
        return embeddings

    def read_image(self, tokens: FloatArray) -> KVCache:
        """A new cache that holds an image's tokens (tokens, dim); raises as `Decoder.run`."""
        cache = self.decoder.new_cache()
        prefix = np.concatenate((self.decoder.embed((self.spec.bos_id,)), tokens))
        self.decoder.run(prefix, cache, bidirectional=True)
        return cache

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
    return TextParts(
        decoder=Decoder(graphs.open("decoder"), embedding, cache, context),
        tokenizer=tokenizer,
        prompts=Prompts(spec, tokenizer),
        spec=spec,
        regions=None if manifest.region is None else Regions(manifest.region, graphs.open),
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
