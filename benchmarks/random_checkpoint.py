"""A full-size random checkpoint in the published layout, to measure export and runtime without the weights.

python benchmarks/random_checkpoint.py moondream2 OUT [--size 2b|0.5b] [--seed N]
python benchmarks/random_checkpoint.py llava-mini OUT [--compressor-size C] [--resolution-ratio N] [--seed N]
python benchmarks/random_checkpoint.py tinygpt-v OUT [--stage 1|2|3|4] [--seed N]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edgevlm_export.families.llava_mini import random_weights as llava_mini
from edgevlm_export.families.moondream2.config import SIZE_05B, SIZE_2B
from edgevlm_export.families.moondream2.random_weights import write_random
from edgevlm_export.families.tinygpt_v import random_weights as tinygpt_v
from edgevlm_export.modules.tinygpt_v import TinyGptVConfig

SIZES = {"2b": SIZE_2B, "0.5b": SIZE_05B}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["llava-mini", "moondream2", "tinygpt-v"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="2b")
    parser.add_argument("--compressor-size", type=int, default=1)
    parser.add_argument("--resolution-ratio", type=int, default=1)
    parser.add_argument("--stage", type=int, choices=range(1, 5), default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.family == "llava-mini":
        config = replace(
            llava_mini.FULL,
            compressor_size=arguments.compressor_size,
            resolution_ratio=arguments.resolution_ratio,
        )
        llava_mini.write_random(arguments.out, config, seed=arguments.seed)
    elif arguments.family == "tinygpt-v":
        tinygpt_v.write_random(
            arguments.out, TinyGptVConfig(), tinygpt_v.Form(stage=arguments.stage), seed=arguments.seed
        )
    else:
        write_random(arguments.out, SIZES[arguments.size], seed=arguments.seed)
    n_bytes = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{arguments.out}: {n_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
