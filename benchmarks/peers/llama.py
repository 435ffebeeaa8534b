"""llama.cpp as a peer: its files, its settings, its worker process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

from benchmarks.peers.costs import cache_values
from benchmarks.peers.random_gguf import VISION_FORMATS, write_text, write_vision
from benchmarks.peers.setup import PYTHON
from benchmarks.peers.workload import Run, Workload, read_run
from edgevlm_export.modules.moondream2 import Moondream2Config

_WORKER = Path(__file__).with_name("llama_worker.py")
_CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # of one value, scales included


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What llama.cpp lets one choose: flash attention, positions computed at once, the KV cache's type.

    `vision` is the format of the image encoder's file, `vision_flash` its attention.
    """

    vision: str = "f16"
    vision_flash: bool = True
    flash: bool = True
    ubatch: int = 1024
    cache: str = "f16"

    def __str__(self) -> str:
        words = {True: "on", False: "off"}
        vision = f"{self.vision} vision, its flash attention {words[self.vision_flash]}"
        return f"flash attention {words[self.flash]}, ubatch {self.ubatch}, {self.cache} cache, {vision}"


@dataclass(frozen=True, kw_only=True)
class Files:
    """A model's files, its image encoder's by format, and how many values its cache has for one position."""

    text: Path
    vision: Mapping[str, Path]
    cache_values: int


def all_settings() -> list[Settings]:
    """What is tried: all that can be chosen for the text model, and on the way all that can be for the image encoder.

    A quantized cache needs flash attention.
    """
    combinations = [(f, u, c) for f, u, c in product((True, False), (512, 1024), ("f16", "q8_0")) if f or c == "f16"]
    visions = cycle(VISION_FORMATS)
    return [Settings(vision=next(visions), vision_flash=f, flash=f, ubatch=u, cache=c) for f, u, c in combinations]


def write_files(folder: Path, config: Moondream2Config, quantization: str) -> Files:
    """The files of a quantization, written where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"text-{quantization}.gguf"
    if not text.exists():
        write_text(text, config.text, quantization)
    vision = {form: folder / f"mmproj-{form}.gguf" for form in VISION_FORMATS}
    for form, path in vision.items():
        if not path.exists():
            write_vision(path, config, form)
    return Files(text=text, vision=vision, cache_values=cache_values(config.text))


def run(files: Files, settings: Settings, workload: Workload) -> Run:
    """One process's work; of a full workload, one more gives the memory that a single image takes.

    Raises:
        RuntimeError: a worker failed; its last words.
    """
    measured = read_run(_work(files, settings, workload))
    once = _work(files, settings, workload, least_memory=True)["peak_rss"] if workload.full else None
    return replace(measured, one_image_rss=once)


def run_once(files: Files, settings: Settings, workload: Workload) -> Run:
    """Without a first image, and what needs another process, to try settings out; raises as `run`."""
    return read_run(_work(files, settings, workload, first_image=False))


def best(candidates: Iterable[Settings], try_out: Callable[[Settings], Run], answer_tokens: int) -> Settings:
    """What reads and answers soonest, with what encodes an image soonest; the default where all fail."""
    tried: dict[Settings, Run] = {}
    for settings in candidates:
        try:
            tried[settings] = try_out(settings)
        except RuntimeError as error:
            print(f"{settings}: {error}", file=sys.stderr)

    def text_ms(settings: Settings) -> float:
        run = tried[settings]
        return run.prefix_ms + run.question_ms + 1e3 * answer_tokens / run.tokens_per_second

    if not tried:
        return Settings()
    sees = min(tried, key=lambda settings: tried[settings].vision_ms)
    return replace(min(tried, key=text_ms), vision=sees.vision, vision_flash=sees.vision_flash)


def _work(
    files: Files, settings: Settings, workload: Workload, *, first_image: bool = True, least_memory: bool = False
) -> dict[str, Any]:
    request = {**asdict(workload), **asdict(settings)}
    request |= {"text": str(files.text), "vision": str(files.vision[settings.vision])}
    request |= {"first_image": first_image, "least_memory": least_memory}
    done = subprocess.run([PYTHON, _WORKER, json.dumps(request)], capture_output=True, check=False, text=True)
    if done.returncode != 0:
        raise RuntimeError("llama.cpp's worker: " + "; ".join(done.stderr.splitlines()[-2:]))
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields | {"position_bytes": files.cache_values * _CACHE_BYTES[settings.cache]}
