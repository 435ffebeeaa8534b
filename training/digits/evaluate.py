"""`python -m training.digits.evaluate`: how many held-out digits the exported networks read right, float32 and int8.

Both are whole exports, opened and run as users do; int8 is calibrated on scans of the training part. Writes
benchmarks/results/digits.json and the README's table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.tables import save, table, write_section
from edgevlm.home import load
from edgevlm_export.pipeline import export
from edgevlm_export.request import ExportRequest
from edgevlm_runtime.manifest import Precision
from training.digits.networks import NETWORKS, Network
from training.digits.scans import LABELS, Scans, held_out_scans, training_scans

HERE = Path(__file__).parent
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_CALIBRATION = 64


def main() -> None:
    argparse.ArgumentParser(description="Score the networks for digits.").parse_args()
    scans = held_out_scans()
    with tempfile.TemporaryDirectory() as folder:
        scores = {network.folder: score(network, scans, Path(folder)) for network in NETWORKS}
    save("digits", {"held-out scans": len(scans.images), "right": scores})
    rows = [
        [name, *(f"{100 * right[p] / len(scans.images):.1f}" for p in PRECISIONS)] for name, right in scores.items()
    ]
    text = table(["handwritten digits, percent right", "float32", "int8"], rows)
    print(text)
    write_section("digits", f"{text}\n\n{len(scans.images)} held-out scans; `python -m training.digits.evaluate`.")


def score(network: Network, scans: Scans, folder: Path) -> dict[Precision, int]:
    """How many of the scans each precision reads right; bundles are written into the folder."""
    return {p: count_right(read(export_digits(network, folder, p), scans), scans) for p in PRECISIONS}


def export_digits(network: Network, folder: Path, precision: Precision) -> Path:
    """A bundle of the network that lies here, calibrated on scans that it was trained on."""
    images = folder / "calibration"
    if not images.exists():
        images.mkdir()
        _every(training_scans(), _CALIBRATION).write(images)
    out = folder / f"{network.folder}-{precision}"
    export(
        ExportRequest(
            name=f"digits-{network.folder}".replace("_", "-"),
            family="timm_backbone",
            source=HERE / network.folder,
            out=out,
            precision=precision,
            calibration=images,
        )
    )
    return out


def read(bundle: Path, scans: Scans) -> list[str]:
    """The best label of each scan."""
    with load(bundle) as model:
        found = model.classify_many(scans.images, top_k=1)
    return [classification.labels[0].name for classification in found]


def count_right(names: Sequence[str], scans: Scans) -> int:
    """How many names are those of the digits."""
    return sum(name == LABELS[digit] for name, digit in zip(names, scans.digits, strict=True))


def _every(scans: Scans, count: int) -> Scans:
    """So many scans, evenly spaced over all writers."""
    chosen: npt.NDArray[np.int64] = np.linspace(0, len(scans.images) - 1, count).astype(np.int64)
    return Scans(images=tuple(scans.images[index] for index in chosen), digits=scans.digits[chosen])


if __name__ == "__main__":
    main()
