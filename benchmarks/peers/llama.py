"""llama.cpp as a peer: its files, its settings, its worker process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.peers.random_gguf import write_text, write_vision
from benchmarks.peers.setup import PYTHON
from benchmarks.peers.workload import Run, Workload
from edgevlm_export.modules.moondream2 import Moondream2Config

_WORKER = Path(__file__).with_name("llama_worker.py")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What llama.cpp lets one choose: flash attention, positions computed at once, the KV cache's type."""

    flash: bool = True
    ubatch: int = 1024
    cache: str = "f16"

    def __str__(self) -> str:
        return f"flash attention {'on' if self.flash else 'off'}, ubatch {self.ubatch}, {self.cache} cache"


@dataclass(frozen=True, kw_only=True)
class Files:
    """A model's two files."""

    text: Path
    vision: Path


def all_settings() -> list[Settings]:
    """Every combination that llama.cpp takes: a quantized cache needs flash attention."""
    combinations = product((True, False), (512, 1024), ("f16", "q8_0"))
    return [Settings(flash=f, ubatch=u, cache=c) for f, u, c in combinations if f or c == "f16"]


def write_files(folder: Path, config: Moondream2Config, quantization: str) -> Files:
    """The files of a quantization, written where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(text=folder / f"text-{quantization}.gguf", vision=folder / "mmproj-f16.gguf")
    if not files.text.exists():
        write_text(files.text, config.text, quantization)
    if not files.vision.exists():
        write_vision(files.vision, config)
    return files


def run(files: Files, settings: Settings, workload: Workload) -> Run:
    """One process's work.

    Raises:
        RuntimeError: the worker failed; its last words.
    """
    request = {**asdict(workload), **asdict(settings), "flash": int(settings.flash)}
    request |= {"text": str(files.text), "vision": str(files.vision)}
    done = subprocess.run([PYTHON, _WORKER, json.dumps(request)], capture_output=True, check=False, text=True)
    if done.returncode != 0:
        raise RuntimeError("llama.cpp's worker: " + "; ".join(done.stderr.splitlines()[-2:]))
    return read_run(json.loads(done.stdout))


def read_run(fields: dict[str, Any]) -> Run:
    """A Run from JSON, whose keys are text."""
    depths = {int(depth): speed for depth, speed in fields["depth_tokens_per_second"].items()}
    return Run(**{**fields, "depth_tokens_per_second": depths})


def best(candidates: Iterable[Settings], try_out: Callable[[Settings], Run], answer_tokens: int) -> Settings:
    """The settings that give a whole answer about a new image soonest."""

    def seconds(settings: Settings) -> float:
        tried = try_out(settings)
        return tried.first_token_ms / 1e3 + answer_tokens / tried.tokens_per_second

    return min(candidates, key=seconds)
