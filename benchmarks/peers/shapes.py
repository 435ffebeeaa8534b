"""What a comparison needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.peers.costs import Costs
from benchmarks.peers.workload import Workload
from edgevlm_export.modules.llava_mini import LlavaMiniConfig
from edgevlm_export.modules.moondream2 import Moondream2Config
from edgevlm_export.modules.tinygpt_v import TinyGptVConfig
from edgevlm_runtime.manifest import Precision

ModelConfig: TypeAlias = Moondream2Config | LlavaMiniConfig | TinyGptVConfig


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model by name, what is asked of it, and what that costs.

    `write` makes a random checkpoint of the `family` in a folder, which is exported in all `precisions`; with OpenVINO
    IR where that is installed if `compiled`, else only where it is asked for. Of `quick` ones nothing is published.
    """

    name: str
    title: str
    family: str
    config: ModelConfig
    workload: Workload
    costs: Costs
    write: Callable[[Path], None]
    precisions: tuple[Precision, ...] = ("int4",)
    compiled: bool = False
    quick: bool = False

    @property
    def gguf(self) -> Moondream2Config | None:
        """The sizes of llama.cpp's files; None of a model that it has no port of."""
        return self.config if isinstance(self.config, Moondream2Config) else None
