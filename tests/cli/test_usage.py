"""Help, the version, and command lines that can not be understood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgevlm
from tests.cli.conftest import Run

HEAVY = {"numpy", "PIL", "tokenizers", "onnxruntime", "openvino", "torch", "rich", "asyncio"}
COMMANDS = [
    "run",
    "caption",
    "query",
    "detect",
    "point",
    "classify",
    "embed",
    "search",
    "chat",
    "list",
    "show",
    "pull",
    "rm",
    "verify",
    "bench",
    "export",
    "cache",
    "doctor",
]


def test_help_names_every_command(run: Run) -> None:
    finished = run("--help")
    assert finished.code == 0
    assert finished.err == ""
    for command in COMMANDS:
        assert f"\n  {command} " in finished.out


def test_without_arguments_help_is_printed(run: Run) -> None:
    assert run().out == run("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    finished = run(command, "--help")
    assert finished.code == 0
    assert finished.out.startswith(f"Usage: edgevlm {command}")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(run: Run, flag: str) -> None:
    finished = run(flag)
    assert (finished.code, finished.out) == (0, f"edgevlm {edgevlm.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captoin", "x.png"], "Did you mean 'caption'"),
        (["run"], "Missing argument"),
        (["run", "photo.jpg"], 'edgevlm run photo.jpg "describe"'),
        (["run", "--temprature", "1", "a.png", "b"], "--temperature"),
        (["run", "-n", "many", "a.png", "b"], "valid integer"),
        (["run", "-n", "0", "a.png", "b"], "max_tokens is 0"),
        (["run", "--top-p", "1.5", "a.png", "b"], "top_p is 1.5"),
        (["run", "--stop", "", "a.png", "b"], "stop"),
        (["run", "-t", "0", "a.png", "b"], "threads is 0"),
        (["run", "--context", "0", "a.png", "b"], "context is 0"),
        (["caption", "--context", "99999", "a.png"], "context is 99999, but nano knows"),
        (["run", "--engine", "abacus", "a.png", "b"], "engine 'abacus' is unknown"),
        (["run", "--max-crops", "0", "a.png", "b"], "max_crops is 0"),
        (["run", "a.png", "  "], "the prompt is empty"),
        (["run", "-", "-", "describe"], "only one image can come from stdin"),
        (["query", "a.png", "how", "many?"], "quote the question"),
        (["query", ""], "the question is empty"),
        (["detect", "a.png", ""], "the object's name is empty"),
        (["caption", "a.png", "--length", "huge"], "huge"),
        (["chat", "--json"], "chat prints no JSON"),
        (["export", "moondream2", "--fp16", "--int8"], "--fp16 and --int8 exclude each other"),
    ],
)
def test_what_can_not_be_used_is_one_line_and_exit_2(
    run: Run, bundle: Path, arguments: list[str], message: str
) -> None:
    finished = run(*arguments, EDGEVLM_MODEL=str(bundle))
    assert finished.code == 2
    assert finished.out == ""
    assert message in finished.error_line()


def test_a_prompt_before_its_image_is_noticed(run: Run, scene: Path) -> None:
    finished = run("run", "describe", scene)
    assert finished.code == 2
    assert finished.error_line() == f"the prompt comes last, but {scene} is a file"


def test_an_error_never_shows_a_traceback_unless_verbose(run: Run) -> None:
    quiet = run("show", "nowhere")
    assert "nowhere" in quiet.error_line()
    verbose = run("show", "nowhere", "--verbose")
    assert verbose.code == quiet.code == 3
    assert "Traceback" in verbose.err
    assert verbose.err.splitlines()[-1] == quiet.err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"], ["cache", "ls"]])
def test_what_needs_no_model_waits_for_no_library(environment: dict[str, str], arguments: list[str]) -> None:
    code = "import sys; from edgevlm.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, *arguments]
    loaded = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr.split()
    assert not HEAVY & {name.partition(".")[0] for name in loaded}
    if arguments == ["--help"]:
        assert not {"edgevlm_runtime.manifest", "hashlib", "pydantic"} & set(loaded)
