"""The model in eager PyTorch: transformers' Phi and SigLIP of the same shapes, all blocks with the same weights.

Sharing saves memory, not time: one block of a large model is larger than the processor's caches. So there are no
figures for memory and for loading. It is slow: it answers shortly, and at no depth beyond an image and a question.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.costs import cache_values
from benchmarks.peers.workload import Run, Workload
from benchmarks.processes import measure
from edgevlm_export.modules.moondream2 import Moondream2Config, TextConfig, VisionConfig
from edgevlm_export.torchvision_operators import declare_missing_operators

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def run(config: Moondream2Config, dtype: str, workload: Workload) -> Run:
    """One process's work."""
    return measure(work, config, dtype, workload.shortened()).value


def work(config: Moondream2Config, dtype: str, workload: Workload) -> Run:
    """The workload, in this process."""
    declare_missing_operators()  # transformers imports torchvision where it is installed
    torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    peer = Peer(config, DTYPES[dtype], workload)
    with torch.inference_mode():
        first = peer.new_image(0)
        phases = peer.new_image(1)
        second = [peer.ask_again() for _ in range(workload.question_times)]
        return Run(
            first_image_ms=sum(first.values()),
            vision_ms=phases["vision_ms"],
            prefix_ms=phases["prefix_ms"],
            question_ms=phases["question_ms"],
            second_question_ms=statistics.median(ms for ms, _ in second),
            tokens_per_second=peer.write(second[-1][1], workload.answer_tokens),
            position_bytes=cache_values(config.text) * DTYPES[dtype].itemsize,
            depth_tokens_per_second=peer.speeds() if workload.full else {},
        )


class Peer:
    """Both towers and a KV cache."""

    def __init__(self, config: Moondream2Config, dtype: torch.dtype, workload: Workload) -> None:
        from transformers import DynamicCache

        self._workload = workload
        self._dtype = dtype
        self._vision = _vision(config.vision).to(dtype).eval()
        self._projection = _projection(config.vision).to(dtype).eval()
        self._text = _text(config.text).to(dtype).eval()
        self._vocab_size = config.text.vocab_size
        self._dim = config.text.dim
        self._cache: Any = DynamicCache()

    def question(self) -> Tensor:
        """Random tokens (1, tokens)."""
        return torch.randint(0, self._vocab_size, (1, self._workload.question_tokens))

    def new_image(self, index: int) -> dict[str, float]:
        """Read BOS, an image and a question from nothing."""
        self.forget(0)
        pixels = torch.from_numpy(self._workload.image(index)).permute(2, 0, 1)[None]
        start = time.perf_counter()
        features = self._vision(pixel_values=(pixels.to(self._dtype) / 127.5 - 1)).last_hidden_state
        embeddings = self._projection(torch.cat([features, features], -1))
        encoded = time.perf_counter()
        self._forward(inputs_embeds=torch.cat([embeddings.new_zeros(1, 1, self._dim), embeddings], 1))
        read = time.perf_counter()
        self.read(self.question())
        return {"vision_ms": 1e3 * (encoded - start), "prefix_ms": 1e3 * (read - encoded), "question_ms": _ms(read)}

    def read(self, tokens: Tensor) -> Tensor:
        """The likeliest token (1, 1) after these (1, tokens)."""
        token: Tensor = self._forward(input_ids=tokens).argmax(-1)
        return token

    def write(self, token: Tensor, n_tokens: int) -> float:
        """Tokens per second of writing some more."""
        start = time.perf_counter()
        for _ in range(n_tokens):
            token = self.read(token)
        return n_tokens / (time.perf_counter() - start)

    def ask_again(self) -> tuple[float, Tensor]:
        """Milliseconds to the first token of another question about the image, and that token."""
        self.forget(self._workload.prefix_tokens)
        start = time.perf_counter()
        token = self.read(self.question())
        return _ms(start), token

    def speeds(self) -> dict[int, float]:
        """Tokens per second by depth; each goes on from what was read for the one before."""
        speeds, length = {}, 0
        for depth in sorted(self._workload.depths):
            self.forget(length)
            token = self.read(torch.randint(0, self._vocab_size, (1, depth - length)))
            speeds[depth] = self.write(token, self._workload.sweep_tokens)
            length = depth
        return speeds

    def forget(self, length: int) -> None:
        """Keep so many positions of the cache."""
        self._cache.crop(length)

    def _forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self._text(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        return logits


def _text(config: TextConfig) -> Any:
    from transformers import PhiConfig, PhiForCausalLM

    phi = PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_context,
        partial_rotary_factor=0.5,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = PhiForCausalLM(phi)
    _share_first(model.model.layers)
    return _filled(model, rotary=model.model.rotary_emb.__class__(phi))


def _vision(config: VisionConfig) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    siglip = SiglipVisionConfig(
        hidden_size=config.enc_dim,
        intermediate_size=config.enc_ff_dim,
        num_hidden_layers=config.enc_n_layers,
        num_attention_heads=config.enc_n_heads,
        image_size=config.crop_size,
        patch_size=config.enc_patch_size,
        vision_use_head=False,
        attn_implementation="sdpa",
    )
    model = SiglipVisionModel(siglip)
    _share_first(model.vision_model.encoder.layers)
    return model


def _projection(config: VisionConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2 * config.enc_dim, config.proj_inner_dim),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.proj_inner_dim, config.proj_out_dim),
    )


def _share_first(layers: Iterable[nn.Module]) -> None:
    """Give all blocks the first one's weights; each keeps its place, by which the cache knows it."""
    first, *others = layers
    for layer in others:
        layer.load_state_dict(first.state_dict(keep_vars=True), assign=True)


def _filled(model: Any, rotary: nn.Module) -> Any:
    """Random weights in the place of meta tensors, still shared; the rotary table is computed, not a weight."""
    model.model.rotary_emb = rotary
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.is_meta:
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(torch.randn(weight.shape) * 0.02, requires_grad=False)
                module._parameters[name] = made[id(weight)]
    return model


def _ms(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
