"""Where models live: the built-in one, and the bundles under EDGEVLM_HOME by name.

    EDGEVLM_HOME/models/<name>-<precision>/     a bundle, as `edgevlm export` writes it
    EDGEVLM_HOME/models/<name>-<target>/        one that was compiled for an NPU: only its full name means it

A name is looked up in this order: the built-in nano; a folder of exactly that name; `<name>-<precision>`, of which the
newest wins when there are several; at last a path. Case, - and _ make no difference in names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgevlm.catalog import TIMM, canonical, load_catalog, nearest
from edgevlm_runtime.errors import BundleError, ModelNotFound
from edgevlm_runtime.home import home as home
from edgevlm_runtime.kinds import Precision, Task

if TYPE_CHECKING:
    from edgevlm_runtime.model import Model

BUILT_IN = "nano"
BUILT_IN_PATH = Path(__file__).resolve().parent / "bundles" / BUILT_IN


def models_folder() -> Path:
    """Where bundles are looked up by name."""
    return home() / "models"


def bundle_folder(name: str, kind: str) -> Path:
    """Where the bundle of a catalog entry goes when no other place is given; its kind is a precision or an NPU."""
    return models_folder() / f"{canonical(name)}-{kind}"


def installed() -> dict[str, Path]:
    """The bundles under EDGEVLM_HOME by canonical name, sorted; folders without a manifest are not bundles."""
    folder = models_folder()
    if not folder.is_dir():
        return {}
    return {canonical(path.name): path for path in sorted(folder.iterdir()) if _is_bundle(path)}


def matches(name: str) -> tuple[Path, ...]:
    """The bundles under EDGEVLM_HOME that a name may mean: the one of exactly that name, else all precisions of it."""
    bundles = installed()
    wanted = canonical(name).removeprefix(TIMM)
    if wanted in bundles:
        return (bundles[wanted],)
    keys = (f"{wanted}-{precision}" for precision in get_args(Precision))
    return tuple(bundles[key] for key in keys if key in bundles)


def that_can(task: Task) -> tuple[str, ...]:
    """The names under EDGEVLM_HOME whose bundles can do a task; damaged ones can do nothing."""
    return tuple(name for name, path in installed().items() if task in _tasks(path))


def resolve(model: str | os.PathLike[str]) -> Path:
    """The folder of a model given by name or path.

    Raises:
        ModelNotFound: there is none; the message says how to get it, or names the nearest one.
    """
    name = os.fspath(model)
    if canonical(name) == BUILT_IN:
        return BUILT_IN_PATH
    if found := matches(name):
        return max(found, key=lambda path: (path / "manifest.json").stat().st_mtime)
    if os.path.exists(name) or os.sep in name:
        return Path(name)
    raise ModelNotFound(_how_to_get(name))


def load(
    model: str | os.PathLike[str] = BUILT_IN,
    *,
    engine: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    low_memory: bool = False,
    image_cache: bool = False,
    draft: str | os.PathLike[str] | None = None,
) -> Model:
    """Open a model for asking.

    Args:
        model: a bundle's path, a name under EDGEVLM_HOME, or `nano`, which is built in.
        engine: `auto`, or an engine's name.
        threads: how many threads the engine uses; what `edgevlm bench --tune` found by default, else all physical
            cores.
        context: how many tokens an image, a question and its answer may take together, to limit memory; all that the
            model knows by default.
        low_memory: close the image encoder after each image, for one image at a time on a small machine.
        image_cache: keep encoded images under EDGEVLM_HOME, of EDGEVLM_CACHE_GB at most (2 by default), so that the
            same image needs no encoding after a restart. The last ones are kept in memory in any case.
        draft: a smaller model with the same tokenizer, by path or name, which guesses tokens; the answer stays the same
            and may take fewer steps of the large one.

    Raises:
        ModelNotFound, DamagedBundle: there is no such bundle, or a file of it is missing or altered.
        EngineError: the engine is not installed or can not read a graph.
        InvalidOption: a value is out of its range.
    """
    from edgevlm_runtime.model import load as load_bundle
    from edgevlm_runtime.options import LoadOptions

    options = LoadOptions(
        engine=engine,
        threads=threads,
        context=context,
        low_memory=low_memory,
        image_cache=image_cache,
        draft=None if draft is None else resolve(draft),
    )
    return load_bundle(resolve(model), options)


def _is_bundle(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _tasks(path: Path) -> tuple[Task, ...]:
    from edgevlm_runtime.bundle import open_bundle

    try:
        return open_bundle(path, check=False).manifest.tasks
    except BundleError:
        return ()


def _how_to_get(name: str) -> str:
    known = canonical(name)
    if known in load_catalog():
        return (
            f"{known} is not in {models_folder()}: run `edgevlm export {known}` where torch is installed "
            "and copy the bundle, or give a bundle's path"
        )
    hint = nearest(name, {BUILT_IN, *installed(), *load_catalog()}) or "; `edgevlm list` shows all"
    return f"no model {name!r} in {models_folder()} and no folder of that name{hint}"
