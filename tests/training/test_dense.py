"""Dense labels say what covers each patch."""

from __future__ import annotations

import torch

from training.dense import DenseHeads, DenseLabels, covering_item, dense_loss, patch_centers
from training.model import DIM, GRID
from training.scenes import scene


def test_patches_know_their_item() -> None:
    drawn = scene("val", 1)
    covered = covering_item(DenseLabels([drawn]).boxes, patch_centers())[0].reshape(GRID, GRID)
    for rank, item in enumerate(drawn.items, 1):
        x, y = item.center
        assert covered[int(y * GRID), int(x * GRID)] == rank
    assert covered.max() == len(drawn.items)


def test_loss_is_finite_and_accuracies_are_shares() -> None:
    labels = DenseLabels([scene("val", index) for index in range(8)])
    features = torch.randn(8, GRID * GRID, DIM)
    loss, right = dense_loss(DenseHeads(), features, (labels.boxes, labels.classes, labels.image))
    assert loss.isfinite()
    assert ((right >= 0) & (right <= 1)).all()
