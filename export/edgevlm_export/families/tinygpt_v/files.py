"""The five places that TinyGPT-V is published in, in one folder.

Phi-2, as a folder or beside the others; EVA's image encoder and BLIP-2's Q-Former, which TinyGPT-V trained no part of;
and what each of its four stages of training added, of which one is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevlm_export.checkpoint import Checkpoint, LazyWeight, open_checkpoint, read_json
from edgevlm_runtime.errors import CheckpointError

VISION_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
STAGE_FILE = "TinyGPT-V_for_Stage{}.pth"
LARGE_STAGE = 4
"""The stage that looks at images of twice the side that EVA's position embeddings are for, and knows tags."""
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"
_TRAINED = "https://huggingface.co/Tyrannosaurus/TinyGPT-V"
_STAGE = re.compile(r"stage[-_ ]?([1-4])\D*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where each part of a model lies: Phi-2's folder, and one file for each of the others."""

    folder: Path
    phi: Path
    vision: Path
    qformer: Path
    trained: Path
    stage: int


class Parts(Checkpoint):
    """The tensors of each part by their own keys, all together behind the part's name."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.phi = open_checkpoint(files.phi)
        self.vision = open_checkpoint(files.vision)
        self.qformer = open_checkpoint(files.qformer)
        self.trained = open_checkpoint(files.trained)
        tensors: dict[str, LazyWeight] = {}
        for name, part in self._named().items():
            tensors |= {f"{name}/{key}": weight for key, weight in part.items()}
        super().__init__(files.folder, tensors)
        self.folder = files.phi

    def _named(self) -> Mapping[str, Checkpoint]:
        return {"phi": self.phi, "vision": self.vision, "qformer": self.qformer, "trained": self.trained}


def find_files(folder: Path, stage: int | None) -> Files:
    """Every part that a folder must hold; `stage` says which is meant, or of which an unnamed file is.

    Raises:
        CheckpointError: one is missing, or there are several of it; the message says where it is published.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the one that holds Phi-2, {VISION_FILE} and the others")
    trained, found_stage = _find_trained(folder, stage)
    return Files(
        folder=folder,
        phi=_find_phi(folder),
        vision=_find_file(folder, VISION_FILE),
        qformer=_find_file(folder, QFORMER_FILE),
        trained=trained,
        stage=found_stage,
    )


def _find_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder / name}: no such file; download it from {_LAVIS}/{name}")
    return folder / name


def _find_phi(folder: Path) -> Path:
    found = [path.parent for path in (folder / "config.json", *sorted(folder.glob("*/config.json"))) if _is_phi(path)]
    if not found:
        raise CheckpointError(f"{folder}: no Phi-2 in it; download huggingface.co/microsoft/phi-2 into {folder}/phi-2")
    if len(found) > 1:
        raise CheckpointError(f"{folder}: Phi-2 is in {found[0]} and in {found[1]}; remove one of them")
    return found[0]


def _is_phi(config: Path) -> bool:
    return config.is_file() and str(read_json(config).get("model_type", "")).startswith("phi")


def _find_trained(folder: Path, stage: int | None) -> tuple[Path, int]:
    """The file of a stage and its number, by its name or, where that says nothing, by `stage`."""
    files = [path for path in sorted(folder.glob("*.pth")) if path.name not in (VISION_FILE, QFORMER_FILE)]
    named = {path: int(match.group(1)) for path in files if (match := _STAGE.search(path.name))}
    unnamed = [path for path in files if path not in named]
    wanted = [path for path, number in named.items() if stage in (None, number)] or unnamed
    if not wanted:
        name = STAGE_FILE.format(stage or 4)
        raise CheckpointError(f"{folder / name}: no such file; download it from {_TRAINED}")
    if len(wanted) > 1:
        names = ", ".join(path.name for path in wanted)
        raise CheckpointError(f"{folder}: holds {names}; choose one with --stage, or remove the others")
    number = named.get(wanted[0], stage)
    if number is None:
        raise CheckpointError(f"{wanted[0]}: its name does not say of which stage it is; say so with --stage")
    return wanted[0], number
