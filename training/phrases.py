"""How objects and scenes are put into words."""

from __future__ import annotations

from collections.abc import Sequence

from training.scenes import Item, Scene

_PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_PREPOSITIONS = {"left": "on the", "right": "on the", "center": "in the"}
_NUMBERS = ("No objects", "One object", "Two objects", "Three objects", "Four objects", "Five objects")
_NOUNS = {"word": "word", "number": "number", "handwritten": "handwritten digit"}


def noun(item: Item) -> str:
    """What the item is, without its color: "star", "word", "handwritten digit"."""
    return item.name if item.kind == "shape" else _NOUNS[item.kind]


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def phrase(item: Item) -> str:
    """The item with its color and text: `red star`, `red word "cat"`, `red handwritten 7`."""
    if item.kind == "shape":
        return f"{item.color} {item.name}"
    if item.kind == "word":
        return f'{item.color} word "{item.name}"'
    return f"{item.color} {item.kind} {item.name}"


def sized(item: Item) -> str:
    """The phrase with the size, if the item has one."""
    return f"{item.size} {phrase(item)}" if item.size else phrase(item)


def fits(item: Item, name: str) -> bool:
    """Whether a singular name such as "star", "red star", "red object" or "object" means the item."""
    return name in (noun(item), f"{item.color} {noun(item)}", f"{item.color} object", "object")


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def place(item: Item) -> str:
    """One of nine places by the item's center."""
    x, y = item.center
    return _PLACES[min(2, int(y * 3))][min(2, int(x * 3))]


def at_place(item: Item) -> str:
    name = place(item)
    return f"{_PREPOSITIONS.get(name, 'at the')} {name}"


def background(scene: Scene) -> str:
    return f"{scene.tone} {scene.pattern}"


def caption(scene: Scene, length: str) -> str:
    """The scene in `short`, `normal` or `long`; objects go from left to right."""
    if length == "short":
        return _sentence(_listed(_mentions(scene.items, sizes=False)))
    if length == "normal":
        return _sentence(f"{_listed(_mentions(scene.items, sizes=True))} on a {background(scene)} background")
    sentences = [f"{_NUMBERS[len(scene.items)]} on a {background(scene)} background."]
    for item, mention in zip(scene.items, _mentions(scene.items, sizes=True), strict=True):
        sentences.append(_sentence(f"{mention} is {at_place(item)}"))
    return " ".join(sentences)


def _mentions(items: Sequence[Item], *, sizes: bool) -> list[str]:
    """Each item with "a", or "another" when one like it was mentioned already."""
    mentions = []
    for k, item in enumerate(items):
        words = sized(item) if sizes else phrase(item)
        again = any(phrase(earlier) == phrase(item) for earlier in items[:k])
        mentions.append(f"another {words}" if again else with_article(words))
    return mentions


def _listed(mentions: Sequence[str]) -> str:
    if len(mentions) < 2:
        return "".join(mentions)
    return f"{', '.join(mentions[:-1])} and {mentions[-1]}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
