"""Dense supervision of the image encoder: every patch tells which object covers it. The heads are thrown away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import DIM, GRID
from training.scenes import MAX_ITEMS, Item, Scene
from training.vocabulary import COLORS, KINDS, PATTERNS, SHAPES, TONES, WORDS

_NOUNS = (*SHAPES, *KINDS[1:])
_COLOR_NAMES = tuple(COLORS)
CLASSES = {
    "noun": len(_NOUNS),
    "color": len(_COLOR_NAMES),
    "word": len(WORDS) + 1,
    "tens": 11,
    "ones": 11,
    "repeated": 2,
}
_ONLY_TEXTS = ("word", "tens", "ones")
_N_BOX = 4
IMAGE_CLASSES = {"count": MAX_ITEMS + 1, "tone": len(TONES), "pattern": len(PATTERNS)}


class DenseHeads(nn.Module):
    """Linear heads on patch features."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.rank = nn.Linear(dim, MAX_ITEMS + 1)
        self.item = nn.Linear(dim, sum(CLASSES.values()) + _N_BOX)
        self.image = nn.Linear(dim, sum(IMAGE_CLASSES.values()))


def item_classes(item: Item, earlier: Sequence[Item]) -> list[int]:
    """Class numbers of an item, in the order of CLASSES."""
    noun = _NOUNS.index(item.name if item.kind == "shape" else item.kind)
    is_digits = item.kind in ("number", "handwritten")
    return [
        noun,
        _COLOR_NAMES.index(item.color),
        WORDS.index(item.name) + 1 if item.kind == "word" else 0,
        int(item.name[-2]) + 1 if is_digits and len(item.name) > 1 else 0,
        int(item.name[-1]) + 1 if is_digits else 0,
        int(any((o.kind, o.name, o.color) == (item.kind, item.name, item.color) for o in earlier)),
    ]


class DenseLabels:
    """Labels of many scenes as tensors."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        n = len(scenes)
        self.boxes = torch.full((n, MAX_ITEMS, 4), -1.0)
        self.classes = torch.zeros(n, MAX_ITEMS, len(CLASSES), dtype=torch.long)
        self.image = torch.zeros(n, len(IMAGE_CLASSES), dtype=torch.long)
        for i, scene in enumerate(scenes):
            self.image[i] = torch.tensor([len(scene.items), TONES.index(scene.tone), PATTERNS.index(scene.pattern)])
            for k, item in enumerate(scene.items):
                self.boxes[i, k] = torch.tensor(item.box)
                self.classes[i, k] = torch.tensor(item_classes(item, scene.items[:k]))


def patch_centers() -> Tensor:
    """(patches, 2): x and y as fractions, row by row."""
    places = (torch.arange(GRID) + 0.5) / GRID
    return torch.stack((places.repeat(GRID), places.repeat_interleave(GRID)), dim=1)


def covering_item(boxes: Tensor, centers: Tensor) -> Tensor:
    """Boxes (n, items, 4) to (n, patches): one more than the number of the item over the patch, 0 for none."""
    x, y = centers[:, 0], centers[:, 1]
    b = boxes[:, :, None]  # (n, items, 1, 4)
    inside = (x > b[..., 0]) & (x < b[..., 2]) & (y > b[..., 1]) & (y < b[..., 3])  # (n, items, patches)
    return inside.float().max(dim=1).values.long() * (inside.float().argmax(dim=1) + 1)


def dense_loss(heads: DenseHeads, features: Tensor, labels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss over features (n, patches, dim), and the accuracy of each head; labels are boxes, classes, image."""
    boxes, classes, image = labels
    centers = patch_centers()
    covered = covering_item(boxes, centers)
    rank_logits = heads.rank(features).float()
    loss = functional.cross_entropy(rank_logits.flatten(0, 1), covered.flatten())
    right = [(rank_logits.argmax(-1) == covered).float().mean()]

    n, patch = covered.nonzero(as_tuple=True)
    which = covered[n, patch] - 1
    outputs = heads.item(features[n, patch]).float().split([*CLASSES.values(), _N_BOX], dim=-1)
    for k, logits in enumerate(outputs[:-1]):
        target = classes[n, which, k]
        loss = loss + functional.cross_entropy(logits, target)
        asked = target > 0 if list(CLASSES)[k] in _ONLY_TEXTS else target >= 0
        right.append((logits.argmax(-1) == target)[asked].float().mean())
    middle = centers[patch].repeat(1, 2)
    loss = loss + 4.0 * functional.smooth_l1_loss(outputs[-1], 4 * (boxes[n, which] - middle), beta=0.1)

    image_logits = heads.image(features.mean(dim=1)).float().split(list(IMAGE_CLASSES.values()), dim=-1)
    for k, logits in enumerate(image_logits):
        loss = loss + 0.5 * functional.cross_entropy(logits, image[:, k])
        right.append((logits.argmax(-1) == image[:, k]).float().mean())
    return loss, torch.stack(right)
