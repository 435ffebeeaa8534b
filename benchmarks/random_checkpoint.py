"""A full-size random checkpoint in the published layout, to measure export and runtime without the weights.

python benchmarks/random_checkpoint.py moondream2 OUT [--size 2b|0.5b] [--seed N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevlm_export.families.moondream2.config import SIZE_05B, SIZE_2B
from edgevlm_export.families.moondream2.random_weights import write_random

SIZES = {"2b": SIZE_2B, "0.5b": SIZE_05B}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["moondream2"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="2b")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random(arguments.out, SIZES[arguments.size], seed=arguments.seed)
    print(f"{arguments.out}: {(arguments.out / 'model.safetensors').stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
