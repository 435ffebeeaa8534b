"""What can be drawn and said: shapes, colors, words, backgrounds, and the classes of dense supervision."""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 160, 60),
    "blue": (40, 75, 215),
    "yellow": (242, 215, 40),
    "orange": (245, 135, 25),
    "purple": (140, 50, 170),
    "white": (244, 244, 244),
    "black": (18, 18, 18),
}
WORDS = (
    *("cat", "dog", "sun", "moon", "sky", "tree", "fish", "bird", "car", "bus", "rain", "shop", "stop", "go"),
    *("exit", "open", "milk", "tea", "salt", "cup", "pen", "book", "door", "home", "hello", "yes", "no", "up"),
    *("down", "left", "box", "key", "hot", "cold", "fire", "ice", "map", "park", "taxi", "zoo"),
)
TONES = ("light", "gray", "dark")
PATTERNS = ("plain", "shaded", "striped", "checkered", "grainy")
KINDS = ("shape", "word", "number", "handwritten")
