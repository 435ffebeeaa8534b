"""Classes in words: what `run` says with models that classify but do not answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevlm_runtime.labels import Label

N_SAID = 3
"""How many labels a sentence has at most."""
# Less likely ones would say nothing.
_LEAST_SAID = 0.05


def sentence(labels: Sequence[Label]) -> str:
    """What the likeliest classes are, in words: `Probably tabby cat (62 %), else tiger cat (20 %) or lynx (9 %).`

    Of a class that has several names, "tabby, tabby cat", the first is said.
    """
    first, *others = labels[:N_SAID]
    words = [_words(label) for label in others if label.probability >= _LEAST_SAID]
    if first.probability < 0.5:
        return f"Perhaps {_either([_words(first), *words])}."
    return f"Probably {_words(first)}{', else ' if words else ''}{_either(words)}."


def class_name(label: Label) -> str:
    """The class's name, or its number where nobody has named it."""
    return label.name or f"class {label.index}"


def _words(label: Label) -> str:
    return f"{class_name(label).partition(',')[0]} ({_percent(label.probability)})"


def _percent(probability: float) -> str:
    """Whole percents, which never claim certainty."""
    if probability >= 0.995:
        return "over 99 %"
    return f"{100 * probability:.0f} %" if probability >= 0.01 else "under 1 %"


def _either(words: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`; nothing of nothing."""
    *most, last = words or [""]
    return f"{', '.join(most)} or {last}" if most else last
