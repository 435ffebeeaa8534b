"""chat: one image, many questions, and an interrupted answer that does not end it."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import edgevlm
from tests.cli.conftest import Run, Start
from tests.cli.test_ask import ENDLESS


def test_each_line_is_a_question(run: Run, scene: Path, bundle: Path) -> None:
    finished = run("chat", scene, "-m", bundle, "-n", "10", stdin=b"What?\n\nWhere?\n/bye\nnever asked\n")
    model = edgevlm.load(bundle, threads=1)
    options = edgevlm.GenerateOptions(max_tokens=10)
    answers = [model.query(scene, question, options).text for question in ("What?", "Where?")]
    assert (finished.code, finished.err) == (0, "")
    assert finished.out == "".join(f"{answer}\n" for answer in answers)


def test_the_end_of_input_ends_the_chat(run: Run, bundle: Path) -> None:
    finished = run("chat", "-m", bundle)
    assert (finished.code, finished.out, finished.err) == (0, "", "")


def test_an_error_does_not_end_the_chat(run: Run, scene: Path, bundle: Path) -> None:
    lines = f"/image nowhere.png\n{'why ' * 5000}\n/what\n/image {scene}\nWhat?\n/clear\nWhat?\n"
    finished = run("chat", "-m", bundle, "-n", "10", stdin=lines.encode())
    model = edgevlm.load(bundle, threads=1)
    options = edgevlm.GenerateOptions(max_tokens=10)
    assert finished.code == 0
    missing, too_long, help_line = finished.err.splitlines()
    assert missing.startswith("edgevlm: ") and "nowhere.png" in missing
    assert too_long.startswith("edgevlm: ")
    assert "/image PATH" in help_line
    assert finished.out == "".join(f"{model.query(image, 'What?', options).text}\n" for image in (scene, None))


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(start: Start, scene: Path, bundle: Path) -> None:
    process = start("chat", scene, "-m", bundle, *ENDLESS)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(b"What?\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == b"edgevlm: interrupted\n"
    _, err = process.communicate(b"/image nowhere.png\n/bye\n", timeout=60)
    assert process.returncode == 0
    assert b"nowhere.png" in err


def test_ctrl_c_between_answers_ends_with_130(start: Start, bundle: Path) -> None:
    process = start("chat", "-m", bundle, "-n", "1")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"What?\n")
    process.stdin.flush()
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)  # the first may still meet the end of the answer
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
