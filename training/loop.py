"""The optimization loop: two optimizers, a schedule on the clock, averaged weights, checkpoints to resume from."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.speed import CPU

_WARMUP = 0.02
_EMA_DECAY = 0.999
_STACKS = re.compile(r"\.(blocks|layers)\.")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """A phase of training: how long, how fast, and where it keeps its state."""

    name: str
    folder: Path
    minutes: float
    matrix_lr: float
    other_lr: float
    final_lr: float = 0.0
    """Fraction of the learning rates that is left at the end."""
    batch_size: int
    save_seconds: float = 150.0
    device: torch.device = CPU
    clock: Callable[[], float] = time.monotonic
    """Seconds; not of the wall where others keep the machine busy."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"


class Optimizers:
    """Muon for the matrices of blocks and layers, AdamW for everything else."""

    def __init__(self, module: nn.Module, options: LoopOptions) -> None:
        matrices = [p for name, p in module.named_parameters() if p.ndim == 2 and _STACKS.search(f".{name}")]
        chosen = {id(p) for p in matrices}
        others = [p for p in module.parameters() if id(p) not in chosen]
        self.matrix = torch.optim.Muon(
            matrices, lr=options.matrix_lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.other = torch.optim.AdamW(others, lr=options.other_lr, weight_decay=0.01, betas=(0.9, 0.98))
        self._bases: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self.matrix, options.matrix_lr),
            (self.other, options.other_lr),
        )

    def step(self, scale: float) -> None:
        """One step with the learning rates scaled; clears the gradients."""
        for optimizer, base in self._bases:
            for group in optimizer.param_groups:
                group["lr"] = base * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [self.matrix.state_dict(), self.other.state_dict()]

    def load(self, states: list[dict[str, object]]) -> None:
        self.matrix.load_state_dict(states[0])
        self.other.load_state_dict(states[1])


class Average:
    """Exponential moving average of the weights."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(_EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in module.parameters()], 1 - decay)


def scale_at(progress: float, final: float) -> float:
    """Factor of the learning rate when `progress` of the time is over: warm up, then a cosine."""
    if progress < _WARMUP:
        return max(progress / _WARMUP, 0.02)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return final + (1 - final) * cosine


def train(
    module: nn.Module, options: LoopOptions, losses: Callable[[float], Tensor], report: Callable[[str], None]
) -> None:
    """Minimize what `losses(progress)` returns until the minutes are over; `module` ends with the averaged weights."""
    optimizers, average = Optimizers(module, options), Average(module)
    step, elapsed = _resume(options, module, optimizers, average)
    began, saved, recent = options.clock() - elapsed, time.monotonic(), math.nan
    while (elapsed := options.clock() - began) < 60 * options.minutes:
        progress = elapsed / (60 * options.minutes)
        loss = losses(progress)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizers.step(scale_at(progress, options.final_lr))
        step += 1
        average.update(module, step)
        recent = _smoothed(recent, float(loss.detach()))
        if step % 100 == 0:
            report(f"{options.name} step {step} at {elapsed / 60:.1f} min: loss {recent:.3f}")
        if time.monotonic() - saved > options.save_seconds:
            _save(options.checkpoint, module, optimizers, average, (step, elapsed))
            saved = time.monotonic()
    module.load_state_dict(average.weights, strict=False)
    _save(options.checkpoint, module, optimizers, average, (step, elapsed))


def _smoothed(mean: float, value: float) -> float:
    return value if math.isnan(mean) else mean + 0.02 * (value - mean)


def _save(path: Path, module: nn.Module, optimizers: Optimizers, average: Average, clock: tuple[int, float]) -> None:
    state = {
        "module": module.state_dict(),
        "average": average.weights,
        "optimizers": optimizers.state(),
        "clock": clock,
    }
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.rename(path)


def _resume(options: LoopOptions, module: nn.Module, optimizers: Optimizers, average: Average) -> tuple[int, float]:
    if not options.checkpoint.exists():
        return 0, 0.0
    state = torch.load(options.checkpoint, weights_only=True, map_location=options.device)
    module.load_state_dict(state["module"])
    optimizers.load(state["optimizers"])
    average.weights = state["average"]
    step, elapsed = state["clock"]
    return step, elapsed
