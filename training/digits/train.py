"""`python -m training.digits.train [fastvit tiny_vit]`: train and write training/digits/NAME/; minutes on one core."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from training.digits.networks import NETWORKS, Network, prepare
from training.digits.scans import Scans, held_out_scans, training_scans

HERE = Path(__file__).parent
_EPOCHS = 24
_BATCH = 64
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 0.05
_SMOOTHING = 0.05
_TURN = math.radians(12)
_STRETCH = 0.12
_SHIFT = 0.12  # of half a side


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the networks for digits.")
    parser.add_argument("names", nargs="*", default=[network.folder for network in NETWORKS])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for network in NETWORKS:
        if network.folder in options.names:
            model = train(network)
            network.publish(model, options.out / network.folder)
            print(f"{network.folder}: {accuracy(model, held_out_scans()):.2%} of the held-out scans are right")


def train(network: Network, epochs: int = _EPOCHS) -> nn.Module:
    """A network from nothing; the same on every run of one machine. In eval mode."""
    torch.manual_seed(0)
    scans = training_scans()
    images, digits = prepare(scans.images), torch.from_numpy(scans.digits)
    model = network.new().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    steps = epochs * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        for batch in torch.randperm(len(images))[: len(images) // _BATCH * _BATCH].split(_BATCH):
            logits = model(vary(images[batch]))
            loss = nn.functional.cross_entropy(logits, digits[batch], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}: {total / (len(images) // _BATCH):.4f}, {time.monotonic() - started:.1f} s", flush=True
        )
    return model.eval()


def vary(images: Tensor) -> Tensor:
    """Each image (images, 3, side, side) turned, stretched and shifted a little; the rim is repeated outwards."""
    n = len(images)
    turn = (torch.rand(n) * 2 - 1) * _TURN
    stretch = 1 + (torch.rand(n, 2) * 2 - 1) * _STRETCH
    shift = (torch.rand(n, 2) * 2 - 1) * _SHIFT
    rows = (turn.cos() * stretch[:, 0], -turn.sin(), shift[:, 0], turn.sin(), turn.cos() * stretch[:, 1], shift[:, 1])
    places = nn.functional.affine_grid(torch.stack(rows, 1).reshape(n, 2, 3), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, places, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(model: nn.Module, scans: Scans) -> float:
    """The share of scans whose best class is right."""
    right = model(prepare(scans.images)).argmax(1) == torch.from_numpy(scans.digits)
    return float(right.double().mean())


if __name__ == "__main__":
    main()
