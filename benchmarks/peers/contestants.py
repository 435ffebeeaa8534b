"""Who takes part: llama.cpp in each quantization, eager PyTorch in each type, EdgeVLM with each bundle and engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from benchmarks.peers import eager, llama, ours
from benchmarks.peers.gguf_file import Tensor
from benchmarks.peers.journal import Journal, file_sizes
from benchmarks.peers.random_gguf import mixed_tensors, possible_quantizations
from benchmarks.peers.shapes import Shapes
from benchmarks.peers.workload import Run, Workload
from edgevlm_export.modules.moondream2 import Moondream2Config
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.engines.choice import choose, engine_of, usable_engines
from edgevlm_runtime.manifest import Manifest

LLAMA, EAGER, OURS = "llama.cpp", "PyTorch", "EdgeVLM"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A peer with its settings in words.

    `weights_bytes` of the text model are read for each token; `files` tell the files that it reads from others.
    `slow` ones are asked less often; `is_default` is the one that a user of that bundle gets without asking.
    """

    kind: str
    variant: str
    settings: str
    run: Callable[[Workload], Run]
    weights_bytes: int
    files: Mapping[str, object] = field(default_factory=dict)
    slow: bool = False
    is_default: bool = False

    @property
    def name(self) -> str:
        """Unique among contestants."""
        return f"{self.kind} {self.variant}"

    @property
    def label(self) -> str:
        """The name, and whether it is the default."""
        return f"{self.name} (auto)" if self.is_default else self.name


def llama_contestants(
    folder: Path, config: Moondream2Config, workload: Workload, journal: Journal | None
) -> Iterator[Contestant]:
    """Each quantization; with a journal at the settings that were fastest for it when each was tried once."""
    for quantization in possible_quantizations(config.text):
        files = llama.write_files(folder, config, quantization)
        settings = llama.Settings() if journal is None else _fastest(files, workload, journal)
        tensors = mixed_tensors(config.text, quantization)
        yield Contestant(
            kind=LLAMA,
            variant=quantization,
            settings=str(settings),
            run=partial(llama.run, files, settings),
            weights_bytes=_read_per_token(tensors),
            files=file_sizes(files.text, *files.vision.values()),
        )


def eager_contestants(shapes: Shapes) -> Iterator[Contestant]:
    """Both types; neither is asked at all depths."""
    for name, dtype in eager.DTYPES.items():
        yield Contestant(
            kind=EAGER,
            variant=name,
            settings="eager, sdpa attention, blocks share weights",
            run=partial(eager.run, shapes.config, name),
            weights_bytes=dtype.itemsize * shapes.costs.text_values,
            slow=True,
        )


def our_contestants(bundles: Sequence[Path], engines: Sequence[str] | None) -> Iterator[Contestant]:
    """Every bundle on every engine that it is made for, or on those that are named."""
    opened = [open_bundle(path) for path in bundles]
    precisions = [bundle.manifest.precision for bundle in opened]
    for bundle in opened:
        manifest = bundle.manifest
        unique = precisions.count(manifest.precision) == 1
        name = manifest.precision if unique else f"{manifest.precision} {bundle.root.name}"
        for engine in engines or engines_for(manifest):
            yield Contestant(
                kind=OURS,
                variant=f"{name} {engine}",
                settings=f"engine {engine}",
                run=partial(ours.run, bundle.root, engine),
                weights_bytes=_decoder_bytes(bundle, engine),
                files={"bundle": bundle.fingerprint},
                is_default=engine in ("auto", choose(manifest)),
            )


def engines_for(manifest: Manifest) -> list[str]:
    """All that can run a bundle here, and "auto" if that is another one."""
    engines = usable_engines(manifest)
    return engines if choose(manifest) in engines else [*engines, "auto"]


def _decoder_bytes(bundle: Bundle, engine: str) -> int:
    """What the decoder's files of that engine take: the graph and its weights."""
    manifest = bundle.manifest
    graph = manifest.graphs["decoder"]
    file = graph.compiled.get(engine_of(choose(manifest) if engine == "auto" else engine, "decoder"), graph.file)
    weights = f"{file.removesuffix('.xml')}.bin" if file.endswith(".xml") else f"{file}.data"
    return sum(manifest.files[name].bytes for name in (file, weights))


def _fastest(files: llama.Files, workload: Workload, journal: Journal) -> llama.Settings:
    """What was found before, or the best of all settings."""
    about = {"settings of": files.text.stem, "files": file_sizes(files.text, *files.vision.values())}
    known = journal.find(about)
    if known is not None:
        return llama.Settings(**known)
    trial = replace(workload, full=False, answer_tokens=workload.question_tokens, question_times=1)
    settings = llama.best(llama.all_settings(), partial(_try_out, files, trial), workload.answer_tokens)
    journal.add(about, asdict(settings))
    return settings


def _try_out(files: llama.Files, trial: Workload, settings: llama.Settings) -> Run:
    tried = llama.run_once(files, settings, trial)
    speed = f"first token {tried.first_token_ms / 1e3:.2f} s, {tried.tokens_per_second:.1f} tokens/s"
    print(f"{files.text.stem}, {settings}: {speed}", file=sys.stderr)
    return tried


def _read_per_token(tensors: Sequence[Tensor]) -> int:
    """Of the embedding, a token reads one row."""
    return sum(tensor.n_bytes for tensor in tensors if not tensor.name.startswith("token_embd"))
