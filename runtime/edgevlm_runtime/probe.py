"""Run the parts of a model one by one and keep what they gave: for measuring, not for answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgevlm_runtime.decoder import Decoder, Step
from edgevlm_runtime.engines import Array, FloatArray, Graph, SharedBuffers
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.kinds import IMAGE_ROLES
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.manifest import ImageSpec, PromptSpec, Role
from edgevlm_runtime.vision import VisionTower


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call of a graph was given and gave, by name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Recorder:
    """A graph that keeps its calls."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.calls: list[Call] = []

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`."""
        outputs = self._graph.run(inputs, shared)
        self.calls.append(Call(inputs=inputs, outputs=outputs))
        return outputs


@dataclass(frozen=True, kw_only=True)
class ObservedImage:
    """Image tokens (tokens, dim), and the calls of each graph that led to them."""

    tokens: FloatArray
    calls: Mapping[Role, Sequence[Call]]

    def output(self, role: Role, name: str) -> Array:
        """One output of all calls of a graph, one after the other along its first axis."""
        return np.concatenate([call.outputs[name] for call in self.calls[role]])


def observe_image(
    spec: ImageSpec, open_graph: Callable[[Role], Graph], pixels: Pixels, max_crops: int
) -> ObservedImage:
    """Encode an image of pixels (height, width, 3) with graphs of any kind."""
    vision, project = (Recorder(open_graph(role)) for role in IMAGE_ROLES)
    tokens = VisionTower(spec, vision, project).encode(pixels, max_crops)
    return ObservedImage(tokens=tokens, calls={"vision": vision.calls, "project": project.calls})


def follow(decoder: Decoder, cache: KVCache, prompt: FloatArray, answer: Sequence[int]) -> list[Step]:
    """The steps from which each id of a given answer would be chosen after a prompt (tokens, dim).

    The cache is as before afterwards.
    """
    with _kept(cache):
        given = (prompt, *(decoder.embed((token,)) for token in answer[:-1]))
        return [decoder.run(embeddings, cache) for embeddings in given]


def answer_greedily(
    decoder: Decoder, cache: KVCache, prompt: FloatArray, spec: PromptSpec, max_tokens: int
) -> tuple[tuple[int, ...], FloatArray]:
    """The ids of an answer to a prompt (tokens, dim), with the one that ended it, and the logits (ids, vocab) that
    they were chosen from.

    The cache is as before afterwards.
    """
    ids: list[int] = []
    logits: list[FloatArray] = []
    stops = {spec.eos_id, *spec.stop_ids}
    with _kept(cache):
        while len(ids) < max_tokens and not stops.intersection(ids[-1:]):
            logits.append(decoder.run(decoder.embed(ids[-1:]) if ids else prompt, cache).logits)
            ids.append(int(suppress(np.stack(logits), spec.suppressed_ids)[-1].argmax()))
    return tuple(ids), np.stack(logits)


def suppress(logits: FloatArray, token_ids: Sequence[int]) -> FloatArray:
    """Logits (ids, vocab) of an answer without the tokens that never follow its first one."""
    allowed = logits.copy()
    allowed[1:, list(token_ids)] = -np.inf
    return allowed


@contextmanager
def _kept(cache: KVCache) -> Iterator[None]:
    length = cache.length
    try:
        yield
    finally:
        cache.rollback(length)
