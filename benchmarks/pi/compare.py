"""Do the board's answers agree with those of this machine: tokens and classes one by one, features by their cosine.

Engines choose kernels by processor, which round differently: a choice that is not the same counts as a tie where this
machine finds it hardly less likely than its own, as in the fidelity of an export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.pi.ask import Answers, Order
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.engines import FloatArray, open_engine
from edgevlm_runtime.fidelity import mean_cosine
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.parts import needed, open_text
from edgevlm_runtime.probe import follow, suppress
from edgevlm_runtime.vision import open_tower

TIE_NATS: Mapping[Precision, float] = {"fp32": 0.001, "fp16": 0.02, "int8": 0.1, "int4": 0.1}
LEAST_COSINE: Mapping[Precision, float] = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.999, "int4": 0.97}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many of the board's choices, tokens or first classes, are this machine's, and how many are ties.

    `worst_nats` is how much less likely than its own this machine finds the worst of them; `identical` whether its own
    answers are the same from beginning to end; `cosine` the mean one of features, for models that give some.
    """

    choices: int
    equal: int
    tied: int
    worst_nats: float
    identical: bool
    cosine: float | None = None

    def passes(self, precision: Precision) -> bool:
        """Whether every choice agrees, and features as they must in that precision."""
        chosen_alike = self.choices > 0 and self.equal + self.tied == self.choices
        return chosen_alike and (self.cosine is None or self.cosine >= LEAST_COSINE[precision])


def agreement(order: Order, board: Answers, here: Answers, precision: Precision) -> Agreement:
    """The board's answers against this machine's, which is asked again what it thinks of the board's tokens.

    Raises:
        ValueError: the two did not answer the same things.
    """
    if board.token_ids:
        identical = board.token_ids == here.token_ids
        return count_choices(token_deficits(order, board.token_ids), TIE_NATS[precision], identical=identical)
    theirs, ours = np.array(board.probabilities), np.array(here.probabilities)
    features = np.array(board.features), np.array(here.features)
    if theirs.shape != ours.shape or features[0].shape != features[1].shape:
        raise ValueError(f"{order.bundle}: {theirs.shape} probabilities on the board, {ours.shape} here")
    classes = theirs.argmax(axis=-1)
    identical = bool((classes == ours.argmax(axis=-1)).all())
    with np.errstate(divide="ignore"):
        deficits = choice_deficits(np.log(ours), classes.tolist())
    return count_choices(deficits, TIE_NATS[precision], identical=identical, cosine=mean_cosine(*features))


def count_choices(deficits: FloatArray, tie_nats: float, *, identical: bool, cosine: float | None = None) -> Agreement:
    """Of deficits (choices,) in nats, those that are 0 and those that are at most `tie_nats`."""
    return Agreement(
        choices=len(deficits),
        equal=int(np.sum(deficits == 0)),
        tied=int(np.sum((deficits > 0) & (deficits <= tie_nats))),
        worst_nats=float(deficits.max(initial=0.0)),
        identical=identical,
        cosine=cosine,
    )


def choice_deficits(logits: FloatArray, choices: Sequence[int]) -> FloatArray:
    """How far below the best of logits (choices, candidates) each choice is, in nats: 0 where it is the best."""
    chosen = np.take_along_axis(logits, np.array(choices)[:, None], axis=-1)[:, 0]
    return np.asarray(logits.max(axis=-1) - chosen)


def token_deficits(order: Order, answers: Sequence[Sequence[int]]) -> FloatArray:
    """`choice_deficits` of all tokens of given answers to the order's questions, as this machine's logits see them."""
    bundle = open_bundle(Path(order.bundle))
    graphs = Graphs(bundle, open_engine("onnxruntime", order.threads))
    try:
        parts = open_text(bundle, graphs)
        tower = open_tower(needed(bundle.manifest.image, "image"), graphs)
        read = parts.read_image([tower.encode(load_image(order.images[0]), None)])
        deficits = []
        for question, ids in zip(order.questions, answers, strict=True):
            prompt = parts.embed(parts.prompts.query(question), read.states)
            steps = follow(parts.decoder, read.cache, prompt, ids)
            logits = suppress(np.stack([step.logits for step in steps]), parts.spec.suppressed_ids)
            deficits.append(choice_deficits(logits, ids))
        return np.concatenate(deficits)
    finally:
        graphs.close()
