"""The shrunken models by the names of their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.proofs.learner import Learner
from training.proofs.llava_mini import LlavaMiniLearner
from training.proofs.tinygpt_v import TinyGptVLearner

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One model: its family, what it is called in tables, and how to make it untrained."""

    family: str
    title: str
    new: Callable[[], Learner]


PROOFS: Mapping[str, Proof] = {
    "llava_mini_c2": Proof(family="llava_mini", title="LLaVA-Mini, 4 tokens", new=partial(LlavaMiniLearner, 2)),
    "tinygpt_v": Proof(family="tinygpt_v", title="TinyGPT-V", new=TinyGptVLearner),
    "llava_mini_c1": Proof(family="llava_mini", title="LLaVA-Mini, 1 token", new=partial(LlavaMiniLearner, 1)),
}
