"""How fast a bundle is on this machine, with one engine and number of threads or with several.

A process of its own loads the bundle and answers once to warm up and once for the figures, so that its peak memory is
nobody else's. Several settings take turns: a machine is never equally fast for long.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.decoder import Session
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.engines.choice import choose, usable_engines
from edgevlm_runtime.engines.threads import thread_count
from edgevlm_runtime.errors import EdgeVLMError, EngineError, InvalidOption
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.image_encoder import ImageEncoder
from edgevlm_runtime.manifest import Manifest, Role
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.parts import TextParts, needed, open_image_encoder, open_text
from edgevlm_runtime.tuning import tuned_options
from edgevlm_runtime.vision import VisionTower, open_tower

QUESTION = "What is in this picture?"
N_TOKENS = 64
_N_IMAGES = 5
# The usual setting stays unless another one is faster by more than turns of one setting differ.
_GAIN = 0.95

Figures: TypeAlias = dict[str, float]
"""What a process took, by name.

`load_ms` until the model is ready; `image_ms` for an image; `peak_rss_bytes` (not on Windows). Of a model that writes
text also: `first_ms`, the first image and question until the second token, with all that engines put off until then;
`crop_ms`, the image encoder's share for each crop; `prefix_ms`, the decoder's for all image tokens; `question_ms`;
`tokens_per_second` of an answer that begins after `depth` tokens.
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a model runs on."""

    engine: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """The median figures of each setting, and why others could not be measured."""

    figures: Mapping[Setting, Figures]
    failed: Mapping[Setting, EdgeVLMError]


def usual_setting(bundle: Bundle, engine: str = "auto", threads: int | None = None) -> Setting:
    """What a bundle runs on with these options; raises as `open_engine`."""
    options = tuned_options(LoadOptions(engine=engine, threads=threads), bundle)
    name = choose(bundle.manifest) if options.engine == "auto" else options.engine
    return Setting(engine=name, threads=thread_count(options.threads))


def settings_to_try(manifest: Manifest, engine: str = "auto", threads: int | None = None) -> list[Setting]:
    """Every engine that can run a bundle, each with all cores and with half of them; what is given is not varied.

    Raises:
        InvalidOption: the bundle is compiled for an NPU, which leaves nothing to try.
    """
    if manifest.npu is not None:
        raise InvalidOption(f"{manifest.name} is compiled for {manifest.npu.target}: there is nothing to tune")
    engines = usable_engines(manifest) if engine == "auto" else [engine]
    most = thread_count(threads)
    counts = [most] if threads is not None or most == 1 else [most, most // 2]
    return [Setting(engine=name, threads=count) for name in engines for count in counts]


def measure(
    bundle: Bundle, settings: Sequence[Setting], pixels: Pixels, repeats: int, done: Callable[[], None]
) -> Results:
    """Measure settings in turns, on an image (height, width, 3); `done` is called after each process.

    Raises:
        EdgeVLMError: the first setting's, if none could be measured.
    """
    runs: dict[Setting, list[Figures]] = {setting: [] for setting in settings}
    failed: dict[Setting, EdgeVLMError] = {}
    for _ in range(repeats):
        for setting in settings:
            if setting not in failed:
                try:
                    runs[setting].append(_in_process(bundle.root, setting, pixels))
                except EdgeVLMError as error:
                    failed[setting] = error
            done()
    if len(failed) == len(settings):
        raise failed[settings[0]]
    figures = {setting: _medians(each) for setting, each in runs.items() if setting not in failed}
    return Results(figures=figures, failed=failed)


def answer_ms(figures: Figures) -> float:
    """What settings are compared by: a command that answers with N_TOKENS about one image; an image if that is all."""
    if "tokens_per_second" not in figures:
        return figures["image_ms"]
    return figures["load_ms"] + figures["first_ms"] + 1e3 * N_TOKENS / figures["tokens_per_second"]


def fastest(figures: Mapping[Setting, Figures], usual: Setting) -> Setting:
    """The setting to remember: the usual one, unless another is clearly faster."""
    best = min(figures, key=lambda setting: answer_ms(figures[setting]))
    if usual in figures and answer_ms(figures[best]) > _GAIN * answer_ms(figures[usual]):
        return usual
    return best


def noise(manifest: Manifest) -> Pixels:
    """An image of one crop, uint8 (side, side, 3)."""
    side = needed(manifest.image, "image").crop_px
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def _medians(runs: Sequence[Figures]) -> Figures:
    return {name: statistics.median_low([run[name] for run in runs]) for name in runs[0]}


def _in_process(root: Path, setting: Setting, pixels: Pixels) -> Figures:
    """Figures of a fresh process.

    Raises:
        EdgeVLMError: what was raised there, or EngineError if the process died.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would start with this one's memory
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_figures, args=(sending, root, setting, pixels))
    process.start()
    sending.close()
    try:
        received: Figures | EdgeVLMError = receiving.recv()
    except EOFError:
        process.join()
        raise EngineError(f"{setting.engine}: the process that measured it ended with {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()
    if isinstance(received, EdgeVLMError):
        raise received
    return received


def _send_figures(sending: Connection, root: Path, setting: Setting, pixels: Pixels) -> None:
    with suppress(KeyboardInterrupt):  # the process that waits tells of it
        try:
            sending.send(figures_here(root, setting, pixels))
        except EdgeVLMError as error:
            sending.send(error)


def figures_here(root: Path, setting: Setting, pixels: Pixels) -> Figures:
    """Figures of this process; raises as `edgevlm_runtime.model.load`."""
    start = time.perf_counter()
    bundle = open_bundle(root)
    graphs = Graphs(bundle, open_engine(setting.engine, setting.threads, bundle.manifest))
    try:
        if "decoder" in bundle.manifest.graphs:
            parts = open_text(bundle, graphs)
            figures = {"load_ms": _ms_since(start), **_time_answer(bundle, graphs, parts, pixels)}
        else:
            role: Role = "classifier" if "classifier" in bundle.manifest.graphs else "vision"
            encoder = open_image_encoder(bundle, graphs, role)
            figures = {"load_ms": _ms_since(start), "image_ms": _time_images(encoder, pixels)}
    finally:
        graphs.close()
    peak = _peak_rss_bytes()
    return figures if peak is None else {**figures, "peak_rss_bytes": peak}


def _time_images(encoder: ImageEncoder, pixels: Pixels) -> float:
    """The median milliseconds of an image, after a first one."""
    durations = []
    for _ in range(1 + _N_IMAGES):
        start = time.perf_counter()
        encoder.run([pixels])
        durations.append(_ms_since(start))
    return statistics.median(durations[1:])


def _time_answer(bundle: Bundle, graphs: Graphs, parts: TextParts, pixels: Pixels) -> Figures:
    start = time.perf_counter()
    tower = open_tower(needed(bundle.manifest.image, "image"), graphs)
    _answer(parts, tower, pixels, 1)
    return {"first_ms": _ms_since(start), **_answer(parts, tower, pixels, N_TOKENS)}


def _answer(parts: TextParts, tower: VisionTower, pixels: Pixels, n_tokens: int) -> Figures:
    """Answer greedily with that many tokens, whatever they are, as far as the context allows."""
    crops: list[int] = []
    start = time.perf_counter()
    tokens = tower.encode(pixels, None, lambda index, count: crops.append(index))
    vision_ms = _ms_since(start)
    read = parts.read_image([tokens])
    image_ms = _ms_since(start)
    session = Session(parts.decoder, read.cache)
    start = time.perf_counter()
    step = session.prefill(parts.embed(parts.prompts.query(QUESTION), read.states))
    question_ms = _ms_since(start)
    depth, n_steps = read.cache.length, min(n_tokens, session.left)
    start = time.perf_counter()
    for _ in range(n_steps):
        step = session.step(session.embed((int(step.logits.argmax()),)))
    return {
        "image_ms": image_ms,
        "crop_ms": vision_ms / len(crops),
        "prefix_ms": image_ms - vision_ms,
        "question_ms": question_ms,
        "tokens_per_second": 1e3 * n_steps / _ms_since(start),
        "depth": depth,
    }


def _ms_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


def _peak_rss_bytes() -> int | None:
    """Peak resident memory of this process so far; None where the system does not tell."""
    with suppress(OSError, ValueError):
        # Not getrusage on Linux, which counts what was there before this program was executed.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
