"""Every backbone of models.yaml: timm has it under that tag, with the sizes and shapes of the papers."""

from __future__ import annotations

import pytest
import torch

from edgevlm.catalog import CatalogEntry, load_catalog
from edgevlm_export.families.timm_backbone.library import default_config, import_timm

ENTRIES = {name: entry for name, entry in load_catalog().items() if entry.family == "timm_backbone" and entry.repo}
# Parameters, and (channels, side) after each stage. The classes are those of the tag.
SHAPES: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "tiny-vit-5m-224": (5_392_764, ((64, 56), (128, 28), (160, 14), (320, 7))),
    "tiny-vit-11m-224": (10_996_972, ((64, 56), (128, 28), (256, 14), (448, 7))),
    "tiny-vit-21m-224": (21_198_568, ((96, 56), (192, 28), (384, 14), (576, 7))),
    "tiny-vit-21m-384": (21_230_488, ((96, 96), (192, 48), (384, 24), (576, 12))),
    "tiny-vit-21m-512": (21_268_120, ((96, 128), (192, 64), (384, 32), (576, 16))),
    "fastvit-t8": (4_026_232, ((48, 64), (96, 32), (192, 16), (384, 8))),
    "fastvit-t12": (7_553_704, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-s12": (9_473_576, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-sa12": (11_580_968, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-sa24": (21_554_216, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-sa36": (31_527_464, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-ma36": (44_068_004, ((76, 64), (152, 32), (304, 16), (608, 8))),
    "fastvit-mci0": (11_406_976, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-mci1": (21_541_632, ((64, 64), (128, 32), (256, 16), (512, 8))),
    "fastvit-mci2": (35_815_232, ((80, 64), (160, 32), (320, 16), (640, 8))),
    "fastvit-mci3": (125_235_648, ((96, 64), (192, 32), (384, 16), (768, 8), (1536, 4))),
    "fastvit-mci4": (321_784_832, ((128, 64), (256, 32), (512, 16), (1024, 8), (2048, 4))),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_and_shapes(name: str) -> None:
    entry = ENTRIES[name]
    n_parameters, stages = SHAPES[name]
    with torch.device("meta"):
        module = import_timm().create_model(entry.variant, pretrained=False).eval()
        images = torch.zeros(1, *module.pretrained_cfg["input_size"])
    assert entry.parameters == n_parameters == sum(parameter.numel() for parameter in module.parameters())
    maps = module.forward_intermediates(images, intermediates_only=True)
    assert [tuple(each.shape[1:]) for each in maps] == [(dim, side, side) for dim, side in stages]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_published_as_the_entry_says(entry: CatalogEntry) -> None:
    import_timm()
    from timm.models import get_pretrained_cfg

    assert entry.variant is not None and "." in entry.variant
    config = get_pretrained_cfg(entry.variant)
    assert config is not None and config.hf_hub_id is not None
    hub = config.hf_hub_id + (entry.variant if config.hf_hub_id.endswith("/") else "")
    assert (entry.repo, entry.license.lower()) == (hub, config.license)
    n_classes = 21841 if entry.name.endswith("in22k") else 1000
    if "mci" not in entry.name:
        assert default_config(entry.variant, "here")["num_classes"] == n_classes


def test_all_variants_are_there() -> None:
    tiny = {f"tiny-vit-{size}-224-in22k" for size in ("5m", "11m", "21m")}
    dist = {f"fastvit-{size}-dist" for size in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")}
    assert SHAPES.keys() | tiny | dist == ENTRIES.keys()
