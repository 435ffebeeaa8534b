"""config.json of Moondream 2, which is often empty, to sizes and prompts.

The published file says nothing, so the sizes are then those of the two published models, told apart by the shape of
the token embedding, and the prompts those of the revision. A file that does say something is believed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.families.moondream2.eras import GPT2_LINEAR, GPT2_LOG, STARMIE, Era, Templates
from edgevlm_export.modules.moondream2 import Moondream2Config, RegionConfig, TextConfig, VisionConfig
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import Template

SIZE_2B = Moondream2Config()
SIZE_05B = Moondream2Config(
    text=TextConfig(dim=1024, ff_dim=4096, n_heads=16, n_kv_heads=16),
    vision=VisionConfig(enc_dim=720, enc_ff_dim=2690, enc_n_heads=10, proj_out_dim=1024),
    region=RegionConfig(dim=1024),
)
_PARTS = ("text", "vision", "region", "tokenizer")
_QUANTIZER = {"group_size"}  # describes the 4-bit layout, which its tensors describe better
_T = TypeVar("_T", TextConfig, VisionConfig, RegionConfig)


def nested_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says about the model: its `config`, or itself where it has the parts at its top.

    Raises:
        CheckpointError: an unknown key among the parts, or a part that is no object.
    """
    nested = {key: value for key, value in data.items() if key in _PARTS} or data.get("config") or {}
    if not isinstance(nested, dict):
        raise CheckpointError("config.json: config must be an object")
    _refuse_unknown(nested, _PARTS, "config")
    for part, value in nested.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"config.json: {part} must be an object")
    return dict(nested)


def read_sizes(nested: Mapping[str, Any], tensors: Mapping[str, LazyWeight]) -> Moondream2Config:
    """Sizes of every part. tensors have the module's names and tell the published sizes apart.

    Raises:
        CheckpointError: an unknown key, a value that is no positive integer, or sizes that contradict each other.
    """
    if not any(part in nested for part in ("text", "vision", "region")):
        wte = tensors.get("text.wte")
        return SIZE_05B if wte is not None and wte.shape[-1:] == (SIZE_05B.text.dim,) else SIZE_2B
    config = Moondream2Config(
        text=_read_text(nested.get("text", {})),
        vision=_read_part(VisionConfig, nested.get("vision", {}), "vision"),
        region=_read_part(RegionConfig, nested.get("region", {}), "region"),
    )
    _check_sizes(config)
    return config


def _read_text(data: Mapping[str, Any]) -> TextConfig:
    text = _read_part(TextConfig, data, "text")
    # The published 0.5B file leaves both out; the reference's fixed default of 32 heads would be wrong there.
    if "n_kv_heads" not in data:
        text = replace(text, n_kv_heads=text.n_heads)
    return text if "ff_dim" in data else replace(text, ff_dim=4 * text.dim)


def _read_part(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    _refuse_unknown(data, {field.name for field in fields(cls)} | _QUANTIZER, where)
    sizes = {key: _positive(value, f"{where}.{key}") for key, value in data.items() if key not in _QUANTIZER}
    return cls(**sizes)


def _positive(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"config.json: {where} is {value!r}, expected a positive integer")
    return value


def _check_sizes(config: Moondream2Config) -> None:
    text, vision, region = config.text, config.vision, config.region
    rules = (
        (text.dim % (32 * text.n_heads) == 0, "text.dim must be a multiple of 32 * text.n_heads"),
        (text.n_heads % text.n_kv_heads == 0, "text.n_heads must be a multiple of text.n_kv_heads"),
        (vision.enc_dim % vision.enc_n_heads == 0, "vision.enc_dim must be a multiple of vision.enc_n_heads"),
        (vision.crop_size % vision.enc_patch_size == 0, "vision.crop_size must be a multiple of enc_patch_size"),
        (vision.grid > 2 * vision.overlap_margin, "vision.overlap_margin must be less than half a crop's patches"),
        (vision.proj_out_dim == text.dim, "vision.proj_out_dim must equal text.dim"),
        (region.dim == text.dim, "region.dim must equal text.dim"),
        (region.size_out_dim % 2 == 0, "region.size_out_dim must be even: width and height"),
        (text.prefix_attn == 1 + vision.n_patches, "text.prefix_attn must be 1 + patches of a crop"),
    )
    for holds, rule in rules:
        if not holds:
            raise CheckpointError(f"config.json: {rule}")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What tells the era of a checkpoint, best first. `packed` and `small` are its layout and its size."""

    tokenizer_config: Mapping[str, Any]
    revision: str | None
    starmie_tokenizer: bool
    packed: bool
    small: bool


def find_era(evidence: Evidence) -> Era:
    """The era by config.json, else by the revision's date, else by the tokenizer, else by what was published when.

    config.json comes first because a folder's revision is often only supposed. Only the 2025-04-14 revision was
    published in 4 bits and only that of January 2025 as 0.5B; a checkpoint of which nothing is known is taken for
    2025-06-21.
    """
    dated = _era_of_revision(evidence.revision)
    told = evidence.tokenizer_config
    if "bos_id" in told or "eos_id" in told:
        return _era_of_config(told, dated)
    if dated is not None:
        return dated
    if evidence.starmie_tokenizer:
        return STARMIE
    return GPT2_LINEAR if evidence.small else GPT2_LOG if evidence.packed else STARMIE


def _era_of_revision(revision: str | None) -> Era | None:
    dated = re.match(r"\d{4}-\d{2}-\d{2}", revision or "")
    if dated is None:
        return None
    return next((era for era in (GPT2_LINEAR, GPT2_LOG) if dated.group() <= era.until), STARMIE)


def _era_of_config(told: Mapping[str, Any], dated: Era | None) -> Era:
    if GPT2_LINEAR.eos_id not in (told.get("bos_id"), told.get("eos_id")):
        return STARMIE
    if dated in (GPT2_LINEAR, GPT2_LOG):
        return dated
    return GPT2_LOG if "long" in _object(_object(told, "templates"), "caption") else GPT2_LINEAR


def read_prompts(era: Era, data: Mapping[str, Any]) -> Era:
    """The era with the ids and templates that config.json gives instead of its own.

    Raises:
        CheckpointError: an unknown key, or ids that are none.
    """
    ids = STARMIE.id_names
    _refuse_unknown(data, {*ids, "templates"}, "tokenizer")
    changed: dict[str, Any] = {name: _token_id(data[name], f"tokenizer.{name}") for name in ids if name in data}
    if "templates" in data:
        changed["templates"] = _read_templates(_object(data, "templates"), era.templates)
    return replace(era, **changed)


def _read_templates(data: Mapping[str, Any], default: Templates) -> Templates:
    names = tuple(field.name for field in fields(Templates))
    _refuse_unknown(data, names, "tokenizer.templates")
    changed: dict[str, Any] = {}
    for name in names:
        if name not in data:
            continue
        where = f"tokenizer.templates.{name}"
        if name == "caption":
            captions = data[name] or {}
            changed[name] = {length: _token_ids(ids, f"{where}.{length}") for length, ids in captions.items()}
        else:
            changed[name] = None if data[name] is None else _read_template(data[name], where)
    return replace(default, **changed)


def _read_template(data: Any, where: str) -> Template:
    if not isinstance(data, dict) or set(data) != {"prefix", "suffix"}:
        raise CheckpointError(f"config.json: {where} must be an object with prefix and suffix")
    return Template(prefix=_token_ids(data["prefix"], where), suffix=_token_ids(data["suffix"], where))


def _token_ids(data: Any, where: str) -> tuple[int, ...]:
    if not isinstance(data, list):
        raise CheckpointError(f"config.json: {where} is {data!r}, expected a list of token ids")
    return tuple(_token_id(value, where) for value in data)


def _token_id(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"config.json: {where} holds {value!r}, expected a token id")
    return value


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: tokenizer {key} must be an object")
    return value


def _refuse_unknown(data: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in data:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise CheckpointError(f"config.json: unknown key {where}.{key}; the nearest known one is {nearest[0]}")
