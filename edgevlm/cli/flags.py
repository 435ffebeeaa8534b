"""The options that several commands share, as records: a command takes one as `flags` and has its fields as options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from edgevlm_runtime.options import GenerateOptions

Verbose = Annotated[bool, typer.Option("--verbose", help="Timings after the answer, and tracebacks on errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Threads = Annotated[
    int | None, typer.Option("--threads", "-t", help="Threads [EDGEVLM_THREADS, else tuned, else physical cores].")
]
EngineName = Annotated[str, typer.Option("--engine", help="Engine: auto, onnxruntime, openvino, mixed or qnn.")]


@dataclass(frozen=True, kw_only=True)
class OpenFlags:
    """Which model works, and on what."""

    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="A bundle's path or name [EDGEVLM_MODEL].")
    ] = None
    threads: Threads = None
    engine: EngineName = "auto"
    json: AsJson = False
    verbose: Verbose = False


@dataclass(frozen=True, kw_only=True)
class ModelFlags(OpenFlags):
    """How an image is looked at before it is asked about; the built-in model can be."""

    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="A bundle's path or name [EDGEVLM_MODEL, else nano]."),
    ] = None
    max_crops: Annotated[
        int | None, typer.Option(help="Cut a large image into at most so many crops: fewer is faster, more sees more.")
    ] = None
    context: Annotated[
        int | None, typer.Option(help="Longest image, question and answer together, in tokens, to limit memory.")
    ] = None
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Encode the image anew and keep nothing of it on disk.")
    ] = False

    def generate_options(self) -> GenerateOptions:
        """What the runtime is asked for.

        Raises:
            InvalidOption: a value is out of range.
        """
        return GenerateOptions(max_crops=self.max_crops)


@dataclass(frozen=True, kw_only=True)
class TextFlags(ModelFlags):
    """How text is generated. Greedy unless a temperature is given, so that answers can be reproduced."""

    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--max-new-tokens", "-n", help="Longest answer, in tokens.")
    ] = GenerateOptions.max_tokens
    temperature: Annotated[float, typer.Option("--temperature", "--temp", help="0 is greedy.")] = (
        GenerateOptions.temperature
    )
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = (
        GenerateOptions.top_p
    )
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens; 0 is all.")] = GenerateOptions.top_k
    min_p: Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest one's.")] = (
        GenerateOptions.min_p
    )
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, tokens that were used become less likely.")] = (
        GenerateOptions.repetition_penalty
    )
    seed: Annotated[int | None, typer.Option(help="Make sampling reproducible.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Let the model think first, where it can; thoughts go to stderr.")
    ] = False

    lookup: Annotated[
        int,
        typer.Option(
            help="Guess up to so many tokens at once from what was said before; answers stay the same. Greedy only."
        ),
    ] = GenerateOptions.lookup
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A smaller model with the same tokenizer that guesses; answers stay the same."
        ),
    ] = None

    def generate_options(self) -> GenerateOptions:
        """What the runtime is asked for.

        Raises:
            InvalidOption: a value is out of range.
        """
        return GenerateOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            max_crops=self.max_crops,
            reasoning=self.reasoning,
            lookup=self.lookup,
        )


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Spread the record that `command` takes as `flags` over options of the command line."""
    hints = get_type_hints(command, include_extras=True)
    record = hints["flags"]
    options = _as_parameters(record)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "flags"
    ]

    @wraps(command)
    def spread(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in options}
        command(**values, flags=record(**given))

    parameters = [*own, *options]
    spread.__dict__["__signature__"] = inspect.Signature(parameters)
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _as_parameters(record: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(record)
    ]
