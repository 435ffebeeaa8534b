"""The command line as users start it: in a process of its own, with a home of its own."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
from PIL import Image, ImageDraw

from edgevlm.cli import main
from edgevlm.home import BUILT_IN_PATH
from tests.cli.image_bundles import write_classifier, write_dual_encoder

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """The one line of stderr that an error is, without its prefix."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("edgevlm: "), self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("edgevlm: ")


Run: TypeAlias = Callable[..., Finished]
Start: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No model chosen, an empty home, one thread."""
    changing = ("EDGEVLM_", "HF_", "PYTHONUNBUFFERED")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(changing)}
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "export", "runtime"))
    return {
        **kept,
        "PYTHONPATH": paths,
        "EDGEVLM_HOME": str(tmp_path / "home"),
        "EDGEVLM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start `edgevlm ARGUMENTS` with pipes and give the process."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object, **settings: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edgevlm", *map(str, arguments)]
        pipe, variables = subprocess.PIPE, {**environment, **settings}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=variables, stdin=pipe, stdout=pipe, stderr=pipe))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Start) -> Run:
    """Run `edgevlm ARGUMENTS` to its end."""

    def finish(*arguments: object, stdin: bytes = b"", **settings: str) -> Finished:
        process = start(*arguments, **settings)
        out, err = process.communicate(stdin, timeout=600)
        return Finished(code=process.returncode, out=out.decode(), err=err.decode())

    return finish


@pytest.fixture
def call(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """`run` within this process, which is faster where a process of its own would tell no more."""
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def finish(*arguments: object, stdin: bytes = b"") -> Finished:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Finished(code=code, out=out, err=err)

    return finish


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A bundle that can do everything: the built-in one, else a shrunken one, made once for all workers."""
    if (BUILT_IN_PATH / "manifest.json").is_file():
        return BUILT_IN_PATH
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    made = shared / "shrunken-fp32"
    with (shared / "shrunken.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _export_shrunken(shared / "shrunken-checkpoint", made)
    return made


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A bundle that tells colors; its fourth class has no name."""
    return write_classifier(tmp_path / "colors", ("red, crimson", "green", "blue", ""))


@pytest.fixture
def dual_encoder(tmp_path: Path) -> Path:
    """A bundle that compares images with texts."""
    return write_dual_encoder(tmp_path / "colorwords")


@pytest.fixture
def colors(tmp_path: Path) -> dict[str, Path]:
    """Images of one color by its name."""
    (tmp_path / "colors-of-images").mkdir()
    paths = {name: tmp_path / "colors-of-images" / f"{name}.png" for name in ("red", "green", "blue")}
    for name, path in paths.items():
        Image.new("RGB", (20, 12), {"red": "#ff0000", "green": "#00ff00", "blue": "#0000ff"}[name]).save(path)
    return paths


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "copied"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A red circle in the upper left and a blue square in the lower right."""
    path = tmp_path / "scene.png"
    image = Image.new("RGB", (160, 120), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((15, 10, 60, 55), fill="red")
    pen.rectangle((95, 70, 140, 110), fill="blue")
    image.save(path)
    return path


def _export_shrunken(checkpoint: Path, out: Path) -> None:
    from edgevlm_export.families import FAMILIES
    from edgevlm_export.pipeline import ExportRequest, export

    FAMILIES["moondream2"].shrink(checkpoint)
    export(ExportRequest(name="shrunken", family="moondream2", source=checkpoint, out=out, precision="fp32"))
