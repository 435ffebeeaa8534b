"""Which timm model a checkpoint is of: config.json in timm's format, else the variant that the caller names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm_export.families.timm_backbone.library import check_architecture, default_config
from edgevlm_runtime.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Description:
    """A timm model. `pretrained` has timm's names: input_size, crop_pct, mean, tag, classifier and so on.

    `num_classes` is None where only the tensors can tell. `published` says that `pretrained` came with the checkpoint.
    """

    architecture: str
    pretrained: Mapping[str, Any]
    published: bool
    model_args: Mapping[str, Any]
    num_classes: int | None
    label_names: Any = None
    label_descriptions: Any = None

    @property
    def tag(self) -> str:
        """timm's pretrained tag, empty where unknown."""
        return str(self.pretrained.get("tag") or "")

    @property
    def is_clip_tower(self) -> bool:
        """Whether the outputs are a dual encoder's embeddings; a fine-tuned tower's tag names its classes."""
        named = "clip" in self.architecture or "clip" in self.tag or self.architecture.startswith("fastvit_mci")
        return named and not re.search(r"in\d+k", self.tag)

    @property
    def classifier(self) -> str | None:
        """The layer that gives the logits."""
        name = self.pretrained.get("classifier")
        return name if isinstance(name, str) else None


def describe(config: Mapping[str, Any], variant: str | None, where: str) -> Description:
    """Read config.json, or where it names no architecture, take timm's record of the variant.

    Raises:
        CheckpointError: neither says which model, they contradict each other, or timm does not have it.
    """
    named = config.get("architecture")
    if named is None and variant is None:
        raise CheckpointError(
            f"{where}: no config.json beside it says which timm model it is; give a name of the catalog, or timm/NAME"
        )
    if named is None:
        assert variant is not None
        return _of_variant(variant, where)
    return _of_config(config, variant, where)


def _of_variant(variant: str, where: str) -> Description:
    architecture = variant.partition(".")[0]
    check_architecture(architecture, where)
    pretrained = default_config(variant, where)
    return Description(
        architecture=architecture, pretrained=pretrained, published=False, model_args={}, num_classes=None
    )


def _of_config(config: Mapping[str, Any], variant: str | None, where: str) -> Description:
    architecture = config["architecture"]
    if not isinstance(architecture, str):
        raise CheckpointError(f"{where}: config.json's architecture is {architecture!r}, expected a name of timm")
    check_architecture(architecture, where)
    if variant is not None and variant.partition(".")[0] != architecture:
        raise CheckpointError(f"{where}: is a checkpoint of {architecture} (config.json), not of {variant}")
    published = "pretrained_cfg" in config
    own = _record(config, "pretrained_cfg", where) if published else dict(config)
    # Only what names parts of the module comes from timm: preprocessing is the checkpoint's own matter.
    classifier = default_config(architecture, where).get("classifier")
    return Description(
        architecture=architecture,
        pretrained={"classifier": classifier, **own},
        published=published or "input_size" in config,
        model_args=_record(config, "model_args", where),
        num_classes=_num_classes(config.get("num_classes", own.get("num_classes")), where),
        label_names=config.get("label_names", own.get("label_names")),
        label_descriptions=config.get("label_descriptions", own.get("label_descriptions")),
    )


def _record(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: config.json's {key} must be an object")
    return value


def _num_classes(value: object, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise CheckpointError(f"{where}: config.json's num_classes is {value!r}, expected a number of classes")
