"""The published tensors of every part to the module's own names, none of them read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgevlm_export.checkpoint import LazyWeight, joined, zeros
from edgevlm_export.families.tinygpt_v.files import Parts
from edgevlm_export.families.tinygpt_v.phi import text_tensors
from edgevlm_export.families.tinygpt_v.shelf import Shelf
from edgevlm_export.modules.tinygpt_v import CHANNELS, TinyGptVConfig
from edgevlm_runtime.errors import CheckpointError

_AFFINE = ("weight", "bias")
_VISION = "visual_encoder."
_QFORMER = ("Qformer.", "query_tokens", "ln_vision.")
_PROJECTIONS = ("llama_proj.", "llama_proj2.")
_TEXT = "llama_model."
# What the published files have and nobody reads: computed tables, and the Q-Former's way for texts.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|inv_freq|(cos|sin)_cached)$")
_UNREAD = re.compile(
    r"Qformer\.(cls\..*|bert\.embeddings\.(word|position)_embeddings\..*"
    r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\..*)"
)


def canonical(parts: Parts, config: TinyGptVConfig) -> dict[str, LazyWeight]:
    """Tensors by the module's names; those that are left over keep their own.

    Raises:
        CheckpointError: one is missing, or does not fit those that it is joined with.
    """
    trained = {key: weight for key, weight in parts.trained.items() if not _BUFFERS.match(key)}
    groups = _grouped(trained)
    vision = Shelf({**parts.vision, **groups[_VISION]}, parts.files.vision)
    qformer = Shelf({**parts.qformer, **groups["qformer"]}, parts.files.qformer)
    projections = Shelf(groups["projections"], parts.files.trained)
    phi = Shelf({key: weight for key, weight in parts.phi.items() if not _BUFFERS.match(key)}, parts.files.phi)
    text = Shelf(groups[_TEXT], parts.files.trained)
    return {
        **_vision_tensors(vision, qformer, config),
        **_qformer_tensors(qformer, config),
        **_project_tensors(projections),
        **text_tensors(phi, text, config.text),
        **projections.left,
        **groups["unknown"],
    }


def _grouped(trained: Mapping[str, LazyWeight]) -> dict[str, dict[str, LazyWeight]]:
    """What a stage has trained, by the part that it belongs to; keys of other files are as in those."""
    groups: dict[str, dict[str, LazyWeight]] = {
        name: {} for name in (_VISION, "qformer", "projections", _TEXT, "unknown")
    }
    for key, weight in trained.items():
        if key.startswith(_VISION):
            groups[_VISION][key.removeprefix(_VISION)] = weight
        elif key.startswith(_QFORMER):
            groups["qformer"][key] = weight
        elif key.startswith(_PROJECTIONS):
            groups["projections"][key] = weight
        elif key.startswith(_TEXT):
            groups[_TEXT][key] = weight
        else:
            groups["unknown"][key] = weight
    return groups


def _vision_tensors(vision: Shelf, qformer: Shelf, config: TinyGptVConfig) -> dict[str, LazyWeight]:
    """EVA's tensors, the last block of the file left out, and the norm that came with the Q-Former."""
    sizes = config.vision
    named = {
        "vision.patch_emb.weight": _flat(vision.take("patch_embed.proj.weight"), sizes.patch_px),
        "vision.patch_emb.bias": vision.take("patch_embed.proj.bias"),
        "vision.cls_token": vision.take("cls_token"),
        "vision.pos_emb": _resized(vision.take("pos_embed"), sizes.grid),
        **{f"vision.post_ln.{leaf}": qformer.take(f"ln_vision.{leaf}") for leaf in _AFFINE},
    }
    for index in range(sizes.n_layers):
        named |= _vision_block(vision, f"blocks.{index}", f"vision.blocks.{index}")
    used = re.compile(rf"blocks\.({'|'.join(map(str, range(sizes.n_layers)))})\.")
    return named | {key: weight for key, weight in vision.left.items() if used.match(key)}


def _vision_block(vision: Shelf, source: str, target: str) -> dict[str, LazyWeight]:
    queries, values = (vision.take(f"{source}.attn.{name}_bias") for name in ("q", "v"))
    named = {
        f"{target}.attn.qkv.weight": vision.take(f"{source}.attn.qkv.weight"),
        f"{target}.attn.qkv.bias": joined(queries, zeros(*queries.shape), values),  # keys have none
    }
    layers = {"ln1": "norm1", "ln2": "norm2", "attn.proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return named | _renamed(vision, source, target, layers)


def _qformer_tensors(qformer: Shelf, config: TinyGptVConfig) -> dict[str, LazyWeight]:
    sizes = config.qformer
    named = {"qformer.queries": qformer.take("query_tokens")}
    named |= _renamed(qformer, "Qformer.bert.embeddings", "qformer", {"query_ln": "LayerNorm"})
    for index in range(sizes.n_layers):
        looks = index % sizes.cross_every == 0
        named |= _qformer_layer(qformer, f"Qformer.bert.encoder.layer.{index}", f"qformer.layers.{index}", looks=looks)
    left = {key: weight for key, weight in qformer.left.items() if key.startswith(_QFORMER)}
    return named | {key: weight for key, weight in left.items() if not (_UNREAD.match(key) or _BUFFERS.match(key))}


def _qformer_layer(qformer: Shelf, source: str, target: str, *, looks: bool) -> dict[str, LazyWeight]:
    layers = {
        "attn.proj": "attention.output.dense",
        "attn_ln": "attention.output.LayerNorm",
        "mlp.fc1": "intermediate_query.dense",
        "mlp.fc2": "output_query.dense",
        "mlp_ln": "output_query.LayerNorm",
    }
    together: dict[str, tuple[str, ...]] = {"attn.qkv": ("attention", "query", "key", "value")}
    if looks:
        layers |= {
            "cross.q": "crossattention.self.query",
            "cross.proj": "crossattention.output.dense",
            "cross_ln": "crossattention.output.LayerNorm",
        }
        together["cross.kv"] = ("crossattention", "key", "value")
    named = _renamed(qformer, source, target, layers)
    for name, (attention, *matrices) in together.items():
        for leaf in _AFFINE:
            rows = [qformer.take(f"{source}.{attention}.self.{matrix}.{leaf}") for matrix in matrices]
            named[f"{target}.{name}.{leaf}"] = joined(*rows)
    return named


def _renamed(shelf: Shelf, source: str, target: str, layers: Mapping[str, str]) -> dict[str, LazyWeight]:
    """Weights and biases of layers, by the module's name -> the published one."""
    return {
        f"{target}.{name}.{leaf}": shelf.take(f"{source}.{published}.{leaf}")
        for name, published in layers.items()
        for leaf in _AFFINE
    }


def _project_tensors(projections: Shelf) -> dict[str, LazyWeight]:
    """The two projections as one: nothing is between them."""
    first, second = (
        tuple(projections.take(f"{name}.{leaf}") for leaf in _AFFINE) for name in ("llama_proj", "llama_proj2")
    )
    if second[0].shape[-1:] != first[0].shape[:1] or second[0].shape[-1:] != first[1].shape:
        raise CheckpointError(
            f"tensor {second[0].origin}: has shape {second[0].shape}, which does not follow {first[0].origin} of shape "
            f"{first[0].shape}"
        )

    def read_weight() -> Tensor:
        return second[0].read().float() @ first[0].read().float()

    def read_bias() -> Tensor:
        return torch.addmv(second[1].read().float(), second[0].read().float(), first[1].read().float())

    shape = (second[0].shape[0], first[0].shape[1])
    return {
        "qformer.project.weight": LazyWeight(origin=second[0].origin, shape=shape, read=read_weight),
        "qformer.project.bias": LazyWeight(origin=second[1].origin, shape=second[1].shape, read=read_bias),
    }


def _flat(patches: LazyWeight, patch_px: int) -> LazyWeight:
    """A convolution over patches (dim, 3, side, side) as a matrix (dim, 3 * side * side)."""
    n_values = CHANNELS * patch_px**2
    if patches.shape[1:] != (CHANNELS, patch_px, patch_px):
        raise CheckpointError(
            f"tensor {patches.origin}: has shape {patches.shape}, expected (dim, {CHANNELS}, side, side)"
        )
    shape = (patches.shape[0], n_values)
    return LazyWeight(origin=patches.origin, shape=shape, read=lambda: patches.read().reshape(shape))


def _resized(positions: LazyWeight, grid: int) -> LazyWeight:
    """Position embeddings (1, 1 + patches, dim) for grid x grid patches; the class token's stays as it is."""
    n_patches = grid**2
    if positions.shape[1] == 1 + n_patches:
        return positions
    shape = (1, 1 + n_patches, positions.shape[2])
    return LazyWeight(origin=positions.origin, shape=shape, read=lambda: resize_positions(positions.read(), grid))


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """(1, 1 + n * n, dim) to float32 (1, 1 + grid * grid, dim), bicubic; the first row stays as it is."""
    first, patches = positions[:, :1].float(), positions[:, 1:].float()
    side = round(patches.shape[1] ** 0.5)
    squares = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(squares, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((first, resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
