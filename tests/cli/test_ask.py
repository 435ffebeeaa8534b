"""run, caption, query: answers on stdout, everything else on stderr, and an exit code for every ending."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevlm
from edgevlm.cli import main
from tests.cli.conftest import Finished, Run, Start

ENDLESS = ("--temperature", "50", "--seed", "1", "-n", "100000")
"""Noise, which hardly ever ends by itself."""


def _object(finished: Finished) -> dict[str, Any]:
    assert finished.code == 0, finished.err
    assert finished.out.count("\n") == 1
    record: dict[str, Any] = json.loads(finished.out)
    return record


def test_the_answer_alone_is_on_stdout(run: Run, scene: Path, bundle: Path) -> None:
    finished = run("run", scene, "What is there?", "-m", bundle, "-n", "20")
    expected = edgevlm.load(bundle, threads=1).query(scene, "What is there?", edgevlm.GenerateOptions(max_tokens=20))
    assert (finished.code, finished.err) == (0, "")
    assert finished.out == expected.text + "\n"


def test_json_is_one_object(run: Run, scene: Path, bundle: Path) -> None:
    options = edgevlm.GenerateOptions(max_tokens=20, temperature=0.7, top_k=40, seed=3)
    expected = edgevlm.load(bundle, threads=1).query(scene, "What?", options)
    flags = ("-n", "20", "--temp", "0.7", "--top-k", "40", "--seed", "3", "--json")
    record = _object(run("query", scene, "What?", "-m", bundle, *flags))
    assert record["text"] == expected.text
    assert record["token_ids"] == list(expected.token_ids)
    assert record["finish_reason"] == expected.finish_reason
    assert record["model"] == edgevlm.load(bundle).manifest.name
    assert record["usage"] == {
        "prompt_tokens": expected.usage.prompt_tokens,
        "completion_tokens": expected.usage.completion_tokens,
        "image_tokens": expected.usage.image_tokens,
        "guessed_tokens": 0,
        "accepted_tokens": 0,
    }
    assert set(record["timings"]) == {"load_ms", "image_ms", "prefill_ms", "decode_ms", "tokens_per_second"}
    assert record["timings"]["image_ms"] > 0


@pytest.mark.parametrize("flags", [("--lookup", "8"), ("--draft", "nano"), ("--draft", "nano", "--lookup", "2")])
def test_guesses_change_nothing_but_the_usage(run: Run, scene: Path, bundle: Path, flags: tuple[str, ...]) -> None:
    arguments = ("query", scene, "What is in the image?", "-m", bundle, "-n", "40", "--json")
    flags = tuple(str(bundle) if flag == "nano" else flag for flag in flags)
    plain, guessed = _object(run(*arguments)), _object(run(*arguments, *flags))
    assert (guessed["text"], guessed["token_ids"]) == (plain["text"], plain["token_ids"])
    usage = guessed["usage"]
    assert 0 <= usage["accepted_tokens"] <= usage["guessed_tokens"]
    assert usage["accepted_tokens"] > 0 or "--draft" not in flags


def test_guesses_that_can_not_be_are_one_line_and_exit_2(
    run: Run, scene: Path, bundle: Path, dual_encoder: Path
) -> None:
    for flags, message in (
        (("--lookup", "17"), "lookup is 17, but must be a whole number from 0 to 16"),
        (("--draft", dual_encoder), "their tokenizers differ"),
    ):
        finished = run("run", scene, "describe", "-m", bundle, *flags)
        assert (finished.code, finished.out) == (2, "")
        assert message in finished.error_line()
    assert run("run", scene, "describe", "-m", bundle, "--draft", "nowhere/none").code == 3


@pytest.mark.parametrize("length", ["short", "normal", "long"])
def test_captions_have_three_lengths(run: Run, scene: Path, bundle: Path, length: str) -> None:
    finished = run("caption", scene, "--length", length, "-m", bundle, "-n", "8")
    expected = edgevlm.load(bundle).caption(scene, length, edgevlm.GenerateOptions(max_tokens=8))
    assert (finished.code, finished.out) == (0, expected.text + "\n")


def test_an_image_from_stdin_is_the_same_as_from_its_file(run: Run, scene: Path, bundle: Path) -> None:
    arguments = ("describe", "-m", bundle, "-n", "20", "--json")
    from_file = _object(run("run", scene, *arguments))
    from_stdin = _object(run("run", "-", *arguments, stdin=scene.read_bytes()))
    assert from_stdin["token_ids"] == from_file["token_ids"]


def test_a_question_needs_no_image(run: Run, bundle: Path) -> None:
    record = _object(run("query", "What is two and two?", "-m", bundle, "-n", "4", "--json"))
    assert record["usage"]["image_tokens"] == 0


def test_several_images_are_answered_in_turn(run: Run, scene: Path, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (90, 90), "green").save(other)
    arguments = ("describe", "-m", bundle, "-n", "12")
    together = run("run", scene, other, *arguments)
    assert together.out == run("run", scene, *arguments).out + run("run", other, *arguments).out
    assert together.err == f"{scene}:\n{other}:\n"
    record = _object(run("run", scene, other, *arguments, "--json"))
    assert [answer["image"] for answer in record["answers"]] == [str(scene), str(other)]
    assert "".join(answer["text"] + "\n" for answer in record["answers"]) == together.out


def test_a_model_that_nobody_chose_is_introduced_with_its_answer(
    bundle: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgevlm.home.BUILT_IN_PATH", bundle)
    monkeypatch.delenv("EDGEVLM_MODEL", raising=False)
    assert main(["run", str(scene), "describe", "-n", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == edgevlm.load(bundle).query(scene, "describe", edgevlm.GenerateOptions(max_tokens=5)).text + "\n"
    (line,) = err.splitlines()
    assert "nano" in line and "edgevlm export moondream2" in line
    assert main(["run", str(tmp_path / "nowhere.png"), "describe"]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_verbose_tells_what_it_took(run: Run, scene: Path, bundle: Path) -> None:
    finished = run("run", scene, "describe", "-m", bundle, "-n", "3", "--verbose", "--no-cache")
    (line,) = finished.err.splitlines()
    assert line.startswith("load ")
    for part in ("image ", "prompt ", "answer ", "tokens/s)"):
        assert part in line


def test_a_stop_string_ends_the_answer(run: Run, scene: Path, bundle: Path) -> None:
    whole = _object(run("run", scene, "describe", "-m", bundle, "-n", "20", "--json"))["text"]
    stop = whole[len(whole) // 2 :][:3]
    assert stop
    record = _object(run("run", scene, "describe", "-m", bundle, "-n", "20", "--stop", stop, "--json"))
    assert record["text"] == whole[: whole.index(stop)]
    assert record["finish_reason"] == "stop_string"


def test_the_model_can_be_chosen_by_the_environment_or_by_name(
    run: Run, scene: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "mine-int8").symlink_to(bundle)
    by_path = run("run", scene, "describe", "-m", bundle, "-n", "8")
    by_environment = run("run", scene, "describe", "-n", "8", EDGEVLM_MODEL=str(bundle))
    by_name = run("run", scene, "describe", "-n", "8", "-m", "MINE")
    assert by_path == by_environment == by_name


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"not an image", "text.png"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "text.png")],
)
def test_a_bad_image_is_one_line_and_exit_4(
    run: Run, bundle: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.png"
    path.write_bytes(content)
    for arguments, stdin in ((("run", path, "describe"), b""), (("detect", path, "cup"), b"")):
        finished = run(*arguments, "-m", bundle, stdin=stdin)
        assert (finished.code, finished.out) == (4, "")
        assert message in finished.error_line()
    assert run("run", "-", "describe", "-m", bundle, stdin=content).code == 4


def test_a_missing_image_is_one_line_and_exit_4(run: Run, bundle: Path) -> None:
    finished = run("run", "nowhere.png", "describe", "-m", bundle)
    assert finished.code == 4
    assert "nowhere.png" in finished.error_line()


def test_a_prompt_that_does_not_fit_is_one_line_with_the_numbers(run: Run, scene: Path, bundle: Path) -> None:
    finished = run("run", scene, "why " * 5000, "-m", bundle)
    assert (finished.code, finished.out) == (1, "")
    cache = edgevlm.load(bundle).manifest.cache
    assert cache is not None
    assert str(cache.max_context) in finished.error_line()
    finished = run("run", scene, "why?", "-m", bundle, "--context", "20")
    assert (finished.code, finished.out) == (1, "")
    assert "the 20 positions of `context`" in finished.error_line()


def test_a_reader_that_goes_away_is_no_failure(start: Start, scene: Path, bundle: Path) -> None:
    process = start("run", scene, "describe", "-m", bundle, *ENDLESS)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_full_disk_is_one_line(
    run: Run, environment: dict[str, str], scene: Path, bundle: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edgevlm", "run", str(scene), "describe", "-m", str(bundle), "-n", "3"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr == b"edgevlm: stdout can not be written: No space left on device\n"


def test_ctrl_c_ends_an_answer_with_130(start: Start, scene: Path, bundle: Path) -> None:
    process = start("run", *[scene] * 500, "describe", "-m", bundle, *ENDLESS)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "edgevlm: interrupted"
    assert b"Traceback" not in err


def test_ctrl_c_while_waiting_for_stdin_is_130(start: Start, bundle: Path) -> None:
    process = start("run", "-", "describe", "-m", bundle)
    assert process.stdin is not None
    process.stdin.write(b"x" * (1 << 20))  # more than a pipe holds: returns when the command is reading
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"edgevlm: interrupted\n"


def test_tokens_arrive_as_they_come(start: Start, scene: Path, bundle: Path) -> None:
    process = start("run", *[scene] * 500, "describe", "-m", bundle, *ENDLESS)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1 << 16)
    assert 0 < len(first) < 4096, "a buffer was filled first"


def test_pixels_matter(run: Run, scene: Path, bundle: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    model = edgevlm.load(bundle)
    assert not np.allclose(model.next_token_logits(scene, "What?"), model.next_token_logits(buffer.getvalue(), "What?"))
