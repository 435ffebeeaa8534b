"""The models that are measured at full size: how a random checkpoint of each is written, and what it may take.

Nothing here imports torch at once: a process that only answers would count it as its own memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgevlm_runtime.manifest import Precision

MOONDREAM2 = "moondream2"
MOONDREAM2_SIZES = ("0.5b", "2b")
DEFAULT_SIZE = "2b"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most bytes wanted; `export_rss` and `run_rss` are peaks of a process."""

    export_rss: int | None = None
    bundle: int
    run_rss: int


@dataclass(frozen=True, kw_only=True)
class FullModel:
    """One model and how it is measured.

    `name` is that of its files, `section` of its place in the README, None where it has none; `options` are those of
    the command. `write` makes a random checkpoint. The model is asked once for each of `max_crops`, None is its own
    limit.
    """

    name: str
    title: str
    family: str
    precision: Precision
    write: Callable[[Path], None]
    section: str | None
    options: str = ""
    stage: int | None = None
    max_crops: tuple[int | None, ...] = (None,)
    limits: Limits | None = None

    @property
    def bundle_name(self) -> str:
        """What its bundle is called."""
        return f"{self.name}-{self.precision}"


def write_moondream2(size: str, out: Path) -> None:
    """A random checkpoint of Moondream2."""
    from benchmarks.random_checkpoint import SIZES
    from edgevlm_export.families.moondream2.random_weights import write_random

    write_random(out, SIZES[size])


def write_llava_mini(out: Path) -> None:
    """A random checkpoint of LLaVA-Mini with its vision tower."""
    from edgevlm_export.families.llava_mini.random_weights import FULL, write_random

    write_random(out, FULL)


def write_tinygpt_v(stage: int, out: Path) -> None:
    """All files of a random TinyGPT-V of that stage."""
    from edgevlm_export.families.tinygpt_v.random_weights import Form, write_random
    from edgevlm_export.modules.tinygpt_v import TinyGptVConfig

    write_random(out, TinyGptVConfig(), Form(stage=stage))


def moondream2(size: str) -> FullModel:
    """Moondream2 of a size, with few and with many crops."""
    return FullModel(
        name=size,
        title=f"Moondream2 {size.upper()}",
        family="moondream2",
        precision="int8",
        write=partial(write_moondream2, size),
        section="full size" if size == DEFAULT_SIZE else None,
        options="" if size == DEFAULT_SIZE else f" --size {size}",
        max_crops=(1, 12),
    )


LLAVA_MINI = FullModel(
    name="llava-mini",
    title="LLaVA-Mini",
    family="llava_mini",
    precision="int4",
    write=write_llava_mini,
    section="full size llava-mini",
    options=" --model llava-mini",
    limits=Limits(export_rss=8_000_000_000, bundle=5_800_000_000, run_rss=7_500_000_000),
)
TINYGPT_V = FullModel(
    name="tinygpt-v",
    title="TinyGPT-V",
    family="tinygpt_v",
    precision="int4",
    write=partial(write_tinygpt_v, 4),
    section="full size tinygpt-v",
    options=" --model tinygpt-v",
    stage=4,
    limits=Limits(bundle=2_600_000_000, run_rss=4_000_000_000),
)
OTHERS = {model.name: model for model in (LLAVA_MINI, TINYGPT_V)}
"""All but Moondream2, which has sizes."""
