"""The bundle at work: long inputs in parts, memory, the image cache, and the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm.cli import main
from edgevlm_export import text_pipeline
from edgevlm_export.families.llava_mini.random_weights import TINY, write_random
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime import parts, prefuse
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import ContextOverflow, UnsupportedTask
from edgevlm_runtime.model import load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from tests.export.conftest import skip_verification
from tests.export.llava_mini.conftest import Case
from tests.runtime.test_frames import write_video

Photos = list[npt.NDArray[np.uint8]]
SHORT = GenerateOptions(max_tokens=12)
QUESTION = "What happens here?"
N_FRAMES, MOST_KB = 3000, 1_000_000


def test_reading_in_parts_changes_nothing(one: Case, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = one.model.encode(photos[:3])
    expected = one.model.query(whole, QUESTION, SHORT)
    monkeypatch.setattr(prefuse, "MAX_TOKENS", 7)
    monkeypatch.setattr(parts, "MAX_TOKENS", 7)
    cut = one.model.encode(photos[:3])
    np.testing.assert_allclose(cut.embeddings, whole.embeddings, rtol=1e-4, atol=1e-5)
    assert one.model.query(cut, QUESTION, SHORT).token_ids == expected.token_ids


def test_frames_in_another_order_are_another_video(one: Case, photos: Photos) -> None:
    first, second = (one.model.encode(frames) for frames in (photos[:3], photos[2::-1]))
    np.testing.assert_array_equal(first.embeddings[::-1], second.embeddings)
    logits = [one.model.next_token_logits(image, QUESTION) for image in (first, second)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_what_does_not_fit_is_refused_before_it_runs(one: Case, photos: Photos) -> None:
    room = one.config.text.max_context
    with pytest.raises(ContextOverflow, match=f"of the model's {room} positions"):
        one.model.query(photos[0], "word " * room, SHORT)
    with pytest.raises(UnsupportedTask, match="can not detect"):
        one.model.detect(photos[0], "cup")


def test_images_are_kept_on_disk_and_videos_are_not(
    one: Case, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path))
    answers: list[list[tuple[int, ...]]] = []
    states: list[tuple[FloatArray, ...]] = []
    for _ in range(2):
        with load(one.bundle, LoadOptions(image_cache=True)) as model:
            model.query(photos[:2], QUESTION, SHORT)
            assert len(list(tmp_path.rglob("*.image"))) == len(answers)
            image = model.encode(photos[0])
            answers.append([model.query(image, text, SHORT).token_ids for text in (QUESTION, "How many?")])
            states.append(image.states)
    assert answers[0] == answers[1]
    np.testing.assert_array_equal(states[0][0], states[1][0])


def test_a_long_video_needs_memory_for_its_tokens_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own, and frames whose pixels alone would take three times as much."""
    tiny = replace(TINY, text=replace(TINY.text, max_context=N_FRAMES + 200), n_prefusion_layers=1)
    write_random(tmp_path / "long", replace(tiny, vision=replace(TINY.vision, n_layers=1, image_px=28)))
    monkeypatch.setattr(text_pipeline, "verify_export", skip_verification)
    source, bundle = tmp_path / "long", tmp_path / "bundle"
    export(ExportRequest(name="long", family="llava_mini", source=source, out=bundle, precision="fp32"))
    code = f"""
import numpy as np
from edgevlm_runtime.frames import Frames
from edgevlm_runtime import image_reader, model as models
pixels = lambda: (np.full((480, 720, 3), index % 256, np.uint8) for index in range({N_FRAMES}))
image_reader.open_frames = lambda source, spec: Frames(count={N_FRAMES}, read=pixels)
with models.load({str(bundle)!r}) as model:
    image = model.encode(["many"])
    answer = model.query(image, "What happens?", models.GenerateOptions(max_tokens=4))
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(len(image.embeddings), answer.usage.image_tokens, peak)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EDGEVLM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    n_tokens, used, peak_kb = map(int, ended.stdout.split())
    assert n_tokens == used == N_FRAMES
    assert peak_kb < MOST_KB


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEVLM_THREADS", "1")


@pytest.fixture
def files(photos: Photos, tmp_path: Path) -> list[Path]:
    """Three frames in a folder of their own."""
    folder = tmp_path / "frames"
    folder.mkdir()
    paths = [folder / f"frame{index}.png" for index in range(3)]
    for path, photo in zip(paths, photos, strict=False):
        Image.fromarray(photo).save(path)
    return paths


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([*map(str, arguments), "--no-cache"])
    written = capsys.readouterr()
    return code, written.out, written.err


def test_frames_on_the_command_line(one: Case, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = one.model.query(files, QUESTION, SHORT)
    given = ("-m", one.bundle, "-n", 12)
    assert run(capsys, "run", *files, QUESTION, *given) == (0, expected.text + "\n", "")
    assert run(capsys, "run", files[0].parent, QUESTION, *given) == (0, expected.text + "\n", "")
    assert run(capsys, "query", files[0].parent, QUESTION, *given) == (0, expected.text + "\n", "")
    code, out, _ = run(capsys, "run", *files, QUESTION, *given, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["text"] == expected.text and record["usage"]["image_tokens"] == 3
    single = one.model.query(files[0], QUESTION, SHORT)
    assert run(capsys, "run", files[0], QUESTION, *given) == (0, single.text + "\n", "")


def test_a_video_on_the_command_line(one: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_video(tmp_path / "clip.mp4", n_frames=30, rate=10)
    expected = one.model.query(str(clip), QUESTION, SHORT)
    assert expected.usage.image_tokens == 3
    assert run(capsys, "run", clip, QUESTION, "-m", one.bundle, "-n", 12) == (0, expected.text + "\n", "")
    code, out, err = run(capsys, "run", clip, QUESTION)
    assert (code, out) == (1, "") and err.splitlines()[-1].startswith("edgevlm: nano looks at one image at a time")


def test_a_bar_counts_frames_on_a_terminal(one: Case, files: list[Path]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgevlm", "run", *map(str, files), QUESTION, "-m", str(one.bundle), "-n", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    with subprocess.Popen([*command, "--no-cache"], stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # how Linux says that the other side was closed
            while piece := os.read(ours, 1024):
                drawn += piece
    os.close(ours)
    assert process.returncode == 0 and b"frames" in drawn


def test_a_missing_tower_is_one_line_of_the_command_line(
    one: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random(tmp_path / "bare", TINY, tower="none")
    code = main(
        ["export", "llava-mini", str(tmp_path / "out"), "--from", str(tmp_path / "bare"), "--vision-tower", "x"]
    )
    assert (
        code == 2
        and capsys.readouterr().err
        == "edgevlm: --vision-tower x: there is no such folder; give one with a CLIP in it\n"
    )
    tower = one.folder / "vision_tower"
    (tmp_path / "bare" / "config.json").write_text("{}")
    given = (
        "export",
        "llava-mini",
        str(tmp_path / "out"),
        "--from",
        str(tmp_path / "bare"),
        "--vision-tower",
        str(tower),
    )
    assert main([*given, "--fp32"]) == 1
    assert "model_type is None" in capsys.readouterr().err
