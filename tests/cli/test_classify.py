"""classify, and run with models that classify but do not answer."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevlm.cli.sentence import sentence
from edgevlm_runtime.labels import Label
from tests.cli.conftest import Run
from tests.cli.image_bundles import write_classifier, write_dual_encoder

Colors = dict[str, Path]


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


def test_labels_are_printed_with_the_likeliest_first(call: Run, classifier: Path, colors: Colors) -> None:
    green, red, blue, nothing = _softmax((3, -3, -3, 0))
    finished = call("classify", colors["green"], "-m", classifier)
    assert (finished.code, finished.err) == (0, "")
    assert finished.out == (f"{green:.4f}  green\n{nothing:.4f}  class 3\n{red:.4f}  red, crimson\n{blue:.4f}  blue\n")
    assert call("classify", colors["green"], "-m", classifier, "-k", "1").out == f"{green:.4f}  green\n"


def test_classes_that_nobody_named_have_numbers(call: Run, colors: Colors, tmp_path: Path) -> None:
    bundle = write_classifier(tmp_path / "nameless")
    assert call("classify", colors["blue"], "-m", bundle, "-k", "1").out.endswith("  class 2\n")


def test_several_images_are_a_batch_with_headings(call: Run, classifier: Path, colors: Colors) -> None:
    finished = call("classify", colors["red"], colors["blue"], "-m", classifier, "-k", "1", "--verbose")
    best = _softmax((3, -3, -3, 0))[0]
    assert finished.out == f"{colors['red']}:\n{best:.4f}  red, crimson\n{colors['blue']}:\n{best:.4f}  blue\n"
    (line,) = finished.err.splitlines()
    assert line.startswith("load ") and line.endswith(" ms (2)")


def test_json_is_one_object(call: Run, classifier: Path, colors: Colors) -> None:
    arguments = ("-m", classifier, "-k", "2", "--json")
    one = json.loads(call("classify", colors["red"], *arguments).out)
    assert one["model"] == "colors"
    assert [label["index"] for label in one["labels"]] == [0, 3]
    assert one["labels"][0]["name"] == "red, crimson"
    assert one["labels"][0]["probability"] == pytest.approx(_softmax((3, -3, -3, 0))[0], abs=1e-6)
    assert set(one["timings"]) == {"load_ms", "image_ms"}
    many = json.loads(call("classify", colors["red"], colors["blue"], *arguments).out)
    assert [(each["image"], each["labels"][0]["index"]) for each in many["answers"]] == [
        (str(colors["red"]), 0),
        (str(colors["blue"]), 2),
    ]


def test_an_image_may_come_from_stdin(run: Run, classifier: Path, colors: Colors) -> None:
    finished = run("classify", "-", "-m", classifier, stdin=colors["red"].read_bytes())
    assert finished.out == run("classify", colors["red"], "-m", classifier).out


def test_labels_of_the_caller_are_chosen_among(call: Run, dual_encoder: Path, colors: Colors, tmp_path: Path) -> None:
    # A red image's cosine is 1 with red, -1/3 with green; the scale is 5, the bias -1.
    red, green = _softmax((5 * 1 - 1, 5 * -1 / 3 - 1))
    expected = f"{red:.4f}  red\n{green:.4f}  green\n"
    arguments = ("classify", colors["red"], "-m", dual_encoder)
    assert call(*arguments, "--labels", " red ,green,").out == expected
    (tmp_path / "labels").write_text("\ufeffred\r\n\r\ngreen\r\n", encoding="utf-8")
    assert call(*arguments, "--labels-file", tmp_path / "labels").out == expected
    swapped = call(*arguments, "--labels", "red, x", "--template", "green {}", "--json")
    best = json.loads(swapped.out)["labels"][0]
    assert best["name"] == "red", "green and red together are nearer to red than green alone"


def test_a_sigmoid_judges_each_label_by_itself(call: Run, colors: Colors, tmp_path: Path) -> None:
    bundle = write_dual_encoder(tmp_path / "sigmoid", activation="sigmoid")
    finished = call("classify", colors["red"], "-m", bundle, "--labels", "red,crimson red")
    assert finished.out == "0.9820  red\n0.9820  crimson red\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "colors", "--labels", "a cat"], "colors has 4 classes of its own"),
        (["-m", "colorwords"], '--labels "a cat, a dog"'),
        (["-m", "colorwords", "--labels", " , "], "there are no labels in it"),
        (["-m", "colorwords", "--labels", "a", "--labels-file", "b"], "exclude each other"),
        (["-m", "colorwords", "--labels-file", "nowhere"], "nowhere: can not be read"),
        (["-m", "colorwords", "--labels-file", "colors-of-images/red.png"], "not a text file in UTF-8"),
        (["-m", "colorwords", "--labels", "a", "--template", "a photo"], "has no {} for the label"),
        (["-m", "colors", "-k", "0"], "top_k is 0"),
        (["-"], "only one image can come from stdin"),
    ],
)
def test_what_can_not_be_used_is_one_line_and_exit_2(
    call: Run, classifier: Path, dual_encoder: Path, colors: Colors, arguments: list[str], message: str
) -> None:
    image = "-" if arguments == ["-"] else colors["red"]
    models = [f"./{each}" if each in ("colors", "colorwords") else each for each in arguments]
    finished = call("classify", image, *models, stdin=b"")
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.error_line()


def test_a_bad_image_of_a_batch_is_named(run: Run, classifier: Path, colors: Colors, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(colors["red"].read_bytes()[:40])
    finished = run("classify", colors["red"], tmp_path / "bad.png", "-m", classifier)
    assert (finished.code, finished.out) == (4, "")
    assert "bad.png" in finished.error_line()


@pytest.mark.parametrize("command", ["classify", "embed", "search"])
def test_without_a_model_one_line_says_which_can(
    call: Run, classifier: Path, dual_encoder: Path, colors: Colors, tmp_path: Path, command: str
) -> None:
    arguments = [colors["red"].parent, "red"] if command == "search" else [colors["red"]]
    none = call(command, *arguments)
    assert (none.code, none.out) == (2, "")
    assert f"nano can not {command}; run `edgevlm export " in none.error_line()
    (tmp_path / "home" / "models").mkdir(parents=True)
    classifier.rename(tmp_path / "home" / "models" / "colors-fp32")
    dual_encoder.rename(tmp_path / "home" / "models" / "words-fp32")
    some = call(command, *arguments)
    able = "words-fp32" if command == "search" else "colors-fp32, words-fp32"
    assert some.error_line() == f"the built-in nano can not {command}; choose one that can with -m: {able}"
    chosen = call(command, *arguments, "-m", "words", *(["--labels", "red"] if command == "classify" else []))
    assert chosen.code == 0, chosen.err


def test_a_model_that_can_not_classify_says_what_it_can(call: Run, bundle: Path, colors: Colors) -> None:
    finished = call("classify", colors["red"], "-m", bundle)
    assert finished.code == 1
    assert "can not classify; it can: caption" in finished.error_line()


def test_run_tells_classes_as_a_sentence(call: Run, classifier: Path, colors: Colors) -> None:
    one = call("run", colors["red"], "describe", "-m", classifier)
    assert (one.code, one.out, one.err) == (0, "Probably red (95 %).\n", "")
    two = call("run", colors["red"], colors["blue"], "describe", "-m", classifier)
    assert two.out == "Probably red (95 %).\nProbably blue (95 %).\n"
    assert two.err == f"{colors['red']}:\n{colors['blue']}:\n"
    record = json.loads(call("run", colors["red"], "describe", "-m", classifier, "--json").out)
    assert record["text"] == "Probably red (95 %)."
    assert record["labels"][0]["name"] == "red, crimson"


def test_run_says_what_else_a_model_can_do(call: Run, dual_encoder: Path, colors: Colors, tmp_path: Path) -> None:
    words = call("run", colors["red"], "describe", "-m", dual_encoder)
    assert (words.code, words.out) == (1, "")
    for command in ("edgevlm classify IMAGE --labels", "edgevlm search FOLDER TEXT", "edgevlm embed IMAGE_OR_TEXT"):
        assert command in words.error_line()
    eyes = call("run", colors["red"], "describe", "-m", write_dual_encoder(tmp_path / "eyes", texts=False))
    assert (eyes.code, eyes.out) == (1, "")
    assert "it turns images into vectors: `edgevlm embed IMAGE`" in eyes.error_line()
    assert call("chat", "-m", dual_encoder).error_line().startswith("colorwords can not chat; it can: classify")


def _labels(*classes: tuple[str, float]) -> list[Label]:
    return [Label(index=i, name=name, probability=share) for i, (name, share) in enumerate(classes)]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([("tabby, cat", 0.62), ("ox", 0.2), ("dog", 0.09)], "Probably tabby (62 %), else ox (20 %) or dog (9 %)."),
        ([("tabby", 0.9), ("lynx", 0.06), ("dog", 0.01)], "Probably tabby (90 %), else lynx (6 %)."),
        ([("tabby", 0.999)], "Probably tabby (over 99 %)."),
        ([("tabby", 0.3), ("ox", 0.25), ("dog", 0.2), ("cow", 0.1)], "Perhaps tabby (30 %), ox (25 %) or dog (20 %)."),
        ([("", 0.004), ("lynx", 0.003)], "Perhaps class 0 (under 1 %)."),
    ],
)  # fmt: skip
def test_sentences(classes: list[tuple[str, float]], expected: str) -> None:
    assert sentence(_labels(*classes)) == expected


def test_a_batch_draws_a_bar_on_a_terminal_only(environment: dict[str, str], classifier: Path, colors: Colors) -> None:
    def to_terminal(*images: Path) -> tuple[str, str]:
        command = [sys.executable, "-m", "edgevlm", "classify", *map(str, images), "-m", str(classifier), "-k", "1"]
        ours, theirs = pty.openpty()
        process = subprocess.run(command, env={**environment, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        drawn = b""
        try:
            while piece := os.read(ours, 1 << 16):
                drawn += piece
        except OSError:
            pass  # how Linux says that the other end is closed
        os.close(ours)
        return process.stdout.decode(), drawn.decode()

    out, drawn = to_terminal(colors["red"], colors["blue"], colors["green"])
    assert "100%" in drawn
    assert out.count("\n") == 6 and "%" not in out
    assert to_terminal(colors["red"])[1] == ""
