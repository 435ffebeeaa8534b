"""Who takes part: llama.cpp in each quantization, eager PyTorch in each type, EdgeVLM with each bundle and engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.peers import eager, llama, ours
from benchmarks.peers.costs import TokenBytes, text_values, token_bytes
from benchmarks.peers.gguf_file import Tensor
from benchmarks.peers.random_gguf import QUANTIZATIONS, mixed_tensors
from benchmarks.peers.workload import Run, Workload
from edgevlm_export.modules.moondream2 import Moondream2Config
from edgevlm_runtime.bundle import open_bundle

LLAMA, EAGER, OURS = "llama.cpp", "PyTorch", "EdgeVLM"
_CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
_TRIAL_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A peer with its settings in words. `one_image_rss` measures a process that answers about one image, in bytes."""

    kind: str
    variant: str
    settings: str
    run: Callable[[Workload], Run]
    token: TokenBytes
    one_image_rss: Callable[[Workload], int] | None = None

    @property
    def name(self) -> str:
        """Unique among contestants."""
        return f"{self.kind} {self.variant}"


def llama_contestants(
    folder: Path, config: Moondream2Config, workload: Workload, *, tune: bool
) -> Iterator[Contestant]:
    """Each quantization; with `tune` at the settings that were fastest for it when each was tried once."""
    for quantization in QUANTIZATIONS:
        files = llama.write_files(folder, config, quantization)
        settings = _fastest(files, workload) if tune else llama.Settings()
        tensors = mixed_tensors(config.text, quantization)
        yield Contestant(
            kind=LLAMA,
            variant=quantization,
            settings=str(settings),
            run=partial(llama.run, files, settings),
            token=token_bytes(config.text, _read_per_token(tensors), _CACHE_BYTES[settings.cache]),
        )


def eager_contestants(config: Moondream2Config) -> Iterator[Contestant]:
    """Both types."""
    for name, dtype in eager.DTYPES.items():
        yield Contestant(
            kind=EAGER,
            variant=name,
            settings="eager, sdpa attention, blocks share weights",
            run=partial(eager.run, config, name),
            token=token_bytes(config.text, dtype.itemsize * text_values(config.text), dtype.itemsize),
        )


def our_contestants(config: Moondream2Config, bundles: Sequence[Path], engines: Sequence[str]) -> Iterator[Contestant]:
    """Every bundle on every engine."""
    for bundle in bundles:
        manifest = open_bundle(bundle).manifest
        decoder = manifest.graphs["decoder"].file
        weights = sum(file.stat().st_size for file in bundle.iterdir() if file.name.startswith(decoder))
        for engine in engines:
            yield Contestant(
                kind=OURS,
                variant=manifest.precision if engine == "auto" else f"{manifest.precision} {engine}",
                settings=f"engine {engine}",
                run=partial(ours.run, bundle, engine),
                token=token_bytes(config.text, weights, 4.0),
                one_image_rss=partial(ours.one_image_rss, bundle, engine),
            )


def _fastest(files: llama.Files, workload: Workload) -> llama.Settings:
    trial = replace(workload, answer_tokens=_TRIAL_TOKENS, depths=())
    return llama.best(llama.all_settings(), partial(_try_out, files, trial), workload.answer_tokens)


def _try_out(files: llama.Files, trial: Workload, settings: llama.Settings) -> Run:
    tried = llama.run(files, settings, trial)
    speed = f"first token {tried.first_token_ms / 1e3:.2f} s, {tried.tokens_per_second:.1f} tokens/s"
    print(f"{files.text.stem}, {settings}: {speed}", file=sys.stderr)
    return tried


def _read_per_token(tensors: Sequence[Tensor]) -> int:
    """Of the embedding, a token reads one row."""
    return sum(tensor.n_bytes for tensor in tensors if not tensor.name.startswith("token_embd"))
