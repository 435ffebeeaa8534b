"""bench: how fast a bundle is on this machine, and with which engine and threads it is fastest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.about import format_bytes
from edgevlm.cli.flags import AsJson, EngineName, Threads, Verbose
from edgevlm.cli.output import emit_json, emit_table, note
from edgevlm.cli.progress import counting
from edgevlm.home import BUILT_IN, resolve
from edgevlm_runtime.errors import InvalidOption

if TYPE_CHECKING:
    from edgevlm.bench import Figures, Results, Setting
    from edgevlm_runtime.bundle import Bundle

_MAX_REPEATS = 100
_MS_COLUMNS = (
    ("load_ms", "LOAD"),
    ("first_ms", "FIRST"),
    ("image_ms", "IMAGE"),
    ("crop_ms", "CROP"),
    ("prefix_ms", "PREFIX"),
    ("question_ms", "QUESTION"),
)


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A bundle's path or name [EDGEVLM_MODEL, else nano].")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="An image file [noise of one crop].")] = None,
    repeats: Annotated[int, typer.Option(help="How often each setting is measured; medians are shown.")] = 3,
    tune: Annotated[
        bool, typer.Option("--tune", help="Try all engines, with all and half of the cores, and keep to the fastest.")
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Drop what --tune found for this model.")] = False,
    threads: Threads = None,
    engine: EngineName = "auto",
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast a model is on this machine.

    In milliseconds: LOAD; FIRST, the beginning of a first answer; IMAGE, one more image (CROP is the encoder's time for
    each crop, PREFIX the decoder's for all); QUESTION.
    """
    from edgevlm_runtime.bundle import open_bundle

    if not 1 <= repeats <= _MAX_REPEATS:
        raise InvalidOption(f"repeats is {repeats}, but must be from 1 to {_MAX_REPEATS}")
    if forget and tune:
        raise InvalidOption("--forget and --tune exclude each other")
    bundle = open_bundle(resolve(model or os.environ.get("EDGEVLM_MODEL") or BUILT_IN))
    if forget:
        _forget(bundle)
        return
    _measure(bundle, image=image, repeats=repeats, tune=tune, threads=threads, engine=engine, json=json)


def _measure(
    bundle: Bundle, *, image: str | None, repeats: int, tune: bool, threads: int | None, engine: str, json: bool
) -> None:
    from edgevlm.bench import measure, noise, settings_to_try, usual_setting
    from edgevlm.cli.session import read_image
    from edgevlm_runtime.image import load_image

    usual = usual_setting(bundle, engine, threads)
    settings = settings_to_try(bundle.manifest, engine, threads) if tune else [usual]
    pixels = noise(bundle.manifest) if image is None else load_image(read_image(image))
    with counting("measuring", repeats * len(settings)) as done:
        results = measure(bundle, settings, pixels, repeats, done)
    if json:
        emit_json(_record(bundle, results, repeats, _remember(bundle, results, usual) if tune else None))
        return
    emit_table(_table(results))
    for setting, error in results.failed.items():
        note(f"edgevlm: {_name(setting)} can not run it: {error}")
    if tune:
        tuned = _remember(bundle, results, usual)
        note(f"edgevlm: from now on {bundle.manifest.name} runs on {_name(tuned)}; --forget undoes it")


def _forget(bundle: Bundle) -> None:
    from edgevlm_runtime.tuning import forget

    known = forget(bundle)
    note(f"edgevlm: {'dropped what' if known else 'nothing'} was measured for {bundle.manifest.name}")


def _remember(bundle: Bundle, results: Results, usual: Setting) -> Setting:
    from edgevlm.bench import fastest
    from edgevlm_runtime.tuning import remember

    best = fastest(results.figures, usual)
    remember(bundle, best.engine, best.threads)
    return best


def _record(bundle: Bundle, results: Results, repeats: int, tuned: Setting | None) -> dict[str, object]:
    from edgevlm_runtime.tuning import machine

    return {
        "model": bundle.manifest.name,
        "path": str(bundle.root),
        "machine": machine(),
        "repeats": repeats,
        "settings": [{**vars(setting), **figures} for setting, figures in results.figures.items()],
        "failed": [{**vars(setting), "error": str(error)} for setting, error in results.failed.items()],
        "tuned": None if tuned is None else vars(tuned),
    }


def _table(results: Results) -> list[tuple[str, ...]]:
    """The settings and those figures that the model has; header first."""
    first = next(iter(results.figures.values()))
    columns = [(name, title) for name, title in _MS_COLUMNS if name in first]
    header = ["ENGINE", "THREADS", *(title for _, title in columns)]
    if "tokens_per_second" in first:
        header.append(f"TOKENS/S AT {first['depth']:.0f}")
    if "peak_rss_bytes" in first:
        header.append("PEAK MEMORY")
    names = [name for name, _ in columns]
    return [tuple(header), *(_row(setting, figures, names) for setting, figures in results.figures.items())]


def _row(setting: Setting, figures: Figures, names: list[str]) -> tuple[str, ...]:
    cells = [setting.engine, str(setting.threads), *(_format_ms(figures[name]) for name in names)]
    if "tokens_per_second" in figures:
        cells.append(f"{figures['tokens_per_second']:.1f}")
    if "peak_rss_bytes" in figures:
        cells.append(format_bytes(int(figures["peak_rss_bytes"])))
    return tuple(cells)


def _format_ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _name(setting: Setting) -> str:
    return f"{setting.engine}, {setting.threads} thread{'' if setting.threads == 1 else 's'}"
