"""models.yaml as frozen records: which checkpoints EdgeVLM can export, and where they are published."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgevlm_runtime.errors import DamagedBundle, EdgeVLMError, ModelNotFound
from edgevlm_runtime.kinds import Precision
from edgevlm_runtime.records import read_record

ROOT = Path(__file__).resolve().parent
TIMM = "timm/"
"""Starts the name of an image backbone that needs no entry: timm/NAME is published on the hub under that very name."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A tokenizer.json that is published apart from the weights."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """An image encoder that is published apart from the model that looks through it; `files` are patterns."""

    repo: str
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model of the catalog; the comment at the top of models.yaml says what each field means."""

    name: str
    family: str
    description: str
    license: str
    precision: Precision
    parameters: int | None = None
    repo: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    variant: str | None = None
    tokenizer: TokenizerSource | None = None
    vision_tower: TowerSource | None = None
    folder: str | None = None
    gather: str | None = None


def canonical(name: str) -> str:
    """The one spelling of a model's name: lower case, with - for _."""
    return name.strip().lower().replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that looks most like `name`, else nothing."""
    close = difflib.get_close_matches(canonical(name), sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def load_catalog() -> Mapping[str, CatalogEntry]:
    """All entries by canonical name, in the order of models.yaml.

    Raises:
        EdgeVLMError: models.yaml is missing or has a field that is not known.
    """
    import yaml  # here, as most commands need no catalog and --help none of it

    path = _catalog_file()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML is built without the fast one in some places
    entries = yaml.load(path.read_text(encoding="utf-8"), loader)
    try:
        return {
            canonical(name): read_record(CatalogEntry, {"name": canonical(name), **fields}, f"{path}: {name}")
            for name, fields in entries.items()
        }
    except DamagedBundle as error:
        raise EdgeVLMError(str(error)) from error


def find_entry(name: str) -> CatalogEntry:
    """The entry of that name, in which case, - and _ make no difference; or one for the backbone that timm/NAME names.

    Raises:
        ModelNotFound: the catalog has no such model; the message names the nearest one.
    """
    if name.strip().startswith(TIMM):
        return _timm_entry(name.strip().removeprefix(TIMM))
    catalog = load_catalog()
    if canonical(name) not in catalog:
        hint = nearest(name, catalog) or "; `edgevlm list` shows all, and timm/NAME is any image backbone of timm"
        raise ModelNotFound(f"no model {name!r} in the catalog{hint}")
    return catalog[canonical(name)]


def _timm_entry(variant: str) -> CatalogEntry:
    if not re.fullmatch(r"\w[\w.-]*", variant, re.ASCII):
        raise ModelNotFound(f"{TIMM}{variant}: no name of a timm model; one looks like timm/resnet18.a1_in1k")
    return CatalogEntry(
        name=canonical(variant),
        family="timm_backbone",
        description=f"An image backbone of timm; its card and license: https://huggingface.co/{TIMM}{variant}",
        license="as published",
        precision="int8",
        repo=f"{TIMM}{variant}",
        revision="main",
        files=("config.json", "model.safetensors"),
        variant=variant,
    )


def _catalog_file() -> Path:
    installed = ROOT / "models.yaml"
    return installed if installed.exists() else ROOT.parent / "models.yaml"
