"""What is run on the board; exported here, once.

nano and the trained small models of other families in each precision, and a shrunken random model of every family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import ROOT
from edgevlm.home import BUILT_IN, BUILT_IN_PATH
from edgevlm_export.families import FAMILIES
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.manifest import Precision
from training.proofs.catalog import HERE, PROOFS

_CHECKPOINT = ROOT / "training" / BUILT_IN
_NANO_FAMILY = "moondream2"
_NANO_OTHERS: tuple[Precision, ...] = ("int4", "fp32")
_PROOF_PRECISIONS: tuple[Precision, ...] = ("int8", "int4", "fp32")
_FAMILY_PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle, and what it is called in tables."""

    name: str
    precision: Precision
    bundle: Path


def subjects(folder: Path) -> Iterator[Subject]:
    """All of them; bundles that are not in `folder` yet are exported to it.

    Raises:
        ExportError, FidelityError: a model can not be exported.
    """
    yield Subject(name=BUILT_IN, precision="int8", bundle=BUILT_IN_PATH)
    for precision in _NANO_OTHERS:
        yield _exported(BUILT_IN, _NANO_FAMILY, precision, _CHECKPOINT, folder)
    for name, proof in PROOFS.items():
        for precision in _PROOF_PRECISIONS:
            yield _exported(f"{proof.title}, trained", proof.family, precision, HERE / name, folder / "trained")
    for family in sorted(FAMILIES):
        checkpoint = folder / f"{family}-checkpoint"
        if not checkpoint.exists():
            FAMILIES[family].shrink(checkpoint)
        for precision in _FAMILY_PRECISIONS:
            yield _exported(f"{family}, shrunken", family, precision, checkpoint, folder)


def _exported(name: str, family: str, precision: Precision, checkpoint: Path, folder: Path) -> Subject:
    out = folder / f"{checkpoint.name.removesuffix('-checkpoint')}-{precision}"
    if not out.exists():
        export(ExportRequest(name=out.name, family=family, source=checkpoint, out=out, precision=precision))
    return Subject(name=name, precision=precision, bundle=out)
