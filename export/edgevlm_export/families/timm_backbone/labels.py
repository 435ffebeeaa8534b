"""Names of a classifier's classes: the caller's file, else config.json's, else ImageNet's where the number fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevlm_export.families.timm_backbone.description import Description
from edgevlm_export.families.timm_backbone.library import import_timm
from edgevlm_runtime.errors import CheckpointError


def read_labels(description: Description, num_classes: int, file: Path | None, where: str) -> tuple[str, ...] | None:
    """One name a class, None where nobody knows them.

    Raises:
        CheckpointError: the file or config.json names another number of classes, or the file can not be read.
    """
    if file is not None:
        return read_label_file(file, num_classes)
    if description.label_names:
        return _of_config(description, num_classes, where)
    return None if description.is_clip_tower else _of_imagenet(num_classes)


def read_label_file(file: Path, num_classes: int) -> tuple[str, ...]:
    """A file with one name a line.

    Raises:
        CheckpointError: it can not be read, or has another number of lines.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: can not be read as text; give a file with one label a line") from error
    if len(lines) != num_classes:
        raise CheckpointError(f"{file}: has {len(lines)} lines, but the model {num_classes} classes; one label a line")
    return tuple(line.strip() for line in lines)


def _of_config(description: Description, num_classes: int, where: str) -> tuple[str, ...]:
    names = description.label_names
    if isinstance(names, Mapping):
        names = [names.get(str(index), f"class {index}") for index in range(num_classes)]
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != num_classes:
        raise CheckpointError(f"{where}: config.json's label_names are not {num_classes} names, one a class")
    described = description.label_descriptions
    table: Mapping[str, Any] = described if isinstance(described, Mapping) else {}
    return tuple(" ".join(str(table.get(name, name)).split()) for name in names)


def _of_imagenet(num_classes: int) -> tuple[str, ...] | None:
    data = import_timm().data
    subset = data.infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else tuple(data.ImageNetInfo(subset).label_descriptions())
