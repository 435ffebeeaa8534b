"""The command `edgevlm`: its subcommands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import edgevlm
from edgevlm.cli import ask, bench, cache, chat, classify, doctor, embed, export, models, regions, search
from edgevlm.cli.flags import with_flags
from edgevlm.cli.output import emit, emit_line, prepare_streams, report

# Plain help costs half the start-up time of rich's, which counts on a small board.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

app.command("run")(with_flags(ask.run))
app.command("caption")(with_flags(ask.caption))
app.command("query")(with_flags(ask.query))
app.command("detect")(with_flags(regions.detect))
app.command("point")(with_flags(regions.point))
app.command("classify")(with_flags(classify.classify))
app.command("embed")(with_flags(embed.embed))
app.command("search")(with_flags(search.search))
app.command("chat")(with_flags(chat.chat))
app.command("list")(models.list_models)
app.command("ls", hidden=True)(models.list_models)
app.command("show")(models.show)
app.command("pull")(export.pull)
app.command("rm")(models.remove)
app.command("verify")(models.verify)
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.add_typer(cache.app, name="cache")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        emit_line(f"edgevlm {edgevlm.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Small vision-language and image models on this machine's CPU or NPU.

    Answers go to stdout, everything else to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 model missing or damaged,
    4 bad image, 5 fidelity below the bar, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        emit_line(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv by default) and return its exit code; an error is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    try:
        _invoke(given)
        emit("")  # help is still in the buffer
    except typer.Exit as done:
        return done.exit_code
    except (Exception, KeyboardInterrupt) as error:
        # Python remembers an interrupt of code that it was given as a string, as dataclasses do, and would end itself
        # by the signal instead of with our exit code; more of such code makes it forget.
        exec("")
        return report(error, verbose="--verbose" in given)
    return 0


def _invoke(given: list[str]) -> None:
    # Not by calling `app`, which would turn interrupts and closed pipes into messages of its own.
    command = typer.main.get_command(app)
    with command.make_context("edgevlm", given) as context:
        command.invoke(context)
