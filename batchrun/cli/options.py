"""The options that `run` and `estimate` have in common, each declared once."""

import os
import shlex
import sys
from contextlib import suppress
from typing import Any, NamedTuple, get_type_hints

import click
from msgspec.structs import fields

from batchrun.cli.body_options import (
    body_fields,
    prompt_of_file,
    schema_of_file,
    varied_fields,
)
from batchrun.cli.once import OnceCommand
from batchrun.errors import ErrorKind, JobError
from batchrun.formats.json_text import as_utf8
from batchrun.formats.printable import nearest
from batchrun.job.job_file import load_job, read_setting
from batchrun.job.sections import Job
from batchrun.records import ANSWERED, Resend
from batchrun.runner.asked_rows import RowSelection
from batchrun.simulator.settings import SimulatorSettings

_PATHS = ("output.path", "input.path")  # as the file system has them
_RETRY_FAILED = "--retry-failed"
# Option, job key, argument, help. Types, bounds and defaults are those of the field of the key.
_JOB_OPTIONS = (
    ("-o,--output", "output.path", "DIR", "Run directory; default: runs/NAME."),
    (
        "--model",
        "request.model",
        "NAME",
        "Model of rows that name none; repeat it to send each row to each.",
    ),
    ("--prompt", "request.input", "TEXT", "Jinja2 template that makes the input of each row."),
    ("--instructions", "request.instructions", "TEXT", "Instructions; may be a template too."),
    ("--id", "input.id", "COLUMN", "Column with the ids of rows; default custom_id, id or number."),
    ("--format", "input.format", "jsonl|parquet", "Format of SOURCE; default: by its name."),
    (
        "--base-url",
        "endpoint.base_url",
        "URL",
        "Base URL; default: $OPENAI_BASE_URL, else OpenAI's.",
    ),
    ("--mode", "endpoint.mode", "plain|stream|background", "How each request is made."),
    (
        "--api-key-env",
        "endpoint.api_key_env",
        "NAME",
        "Variable that holds the API key; none for no key.",
    ),
    ("--api-key-command", "endpoint.api_key_command", "CMD", "Command that prints the API key."),
    (
        "--concurrency",
        "limits.concurrency",
        "N",
        "Maximum requests in flight; auto: as many as the server can take.",
    ),
    ("--rpm", "limits.requests_per_minute", "N", "Maximum requests a minute; default: adapted."),
    ("--tpm", "limits.tokens_per_minute", "N", "Maximum tokens a minute; default: adapted."),
    ("--max-cost", "limits.max_cost_usd", "USD", "Stop before the run directory costs more."),
    (
        "--max-cost-per-command",
        "limits.max_cost_per_command_usd",
        "USD",
        "Stop before this command alone costs more.",
    ),
    (
        "--max-failures",
        "limits.max_failures",
        "N|P%",
        "Stop at N failed rows, or at P% of the last 100.",
    ),
    ("--tolerate", "limits.tolerate", "N|P%", "Exit code 0 if no more rows than that are not ok."),
    (
        "--stop-at",
        "limits.stop_at",
        "TIME",
        "Send nothing more after this time (06:30, a date) or duration (8h).",
    ),
    ("--give-up-after", "limits.give_up_after_s", "S", "Seconds that the endpoint may be down."),
    ("--hedge", "limits.hedge", None, "At the end, send slow requests a second time."),
    ("--max-attempts", "retry.max_attempts", "N", "Maximum attempts for a row."),
    ("--timeout", "endpoint.timeout_s", "S", "Seconds for one attempt."),
    (
        "--idle-timeout",
        "endpoint.idle_timeout_s",
        "S",
        "Seconds of silence once an answer has begun.",
    ),
    ("--samples", "expand.samples", "N", "Requests for each row and variant."),
    ("--where", "input.where", "SQL", "Only rows for which this DuckDB expression is true."),
    (
        "--append",
        "input.append",
        None,
        "SOURCE holds further rows only; complete rows stay as they are.",
    ),
    (
        "--skip-bad-rows",
        "input.skip_bad_rows",
        None,
        "Store bad rows with status invalid, and send the rest.",
    ),
    ("--executor", "cluster.executor", "local|ray", "Where requests are sent from."),
    ("--workers", "cluster.workers", "N", "Processes that send requests, with --executor ray."),
)


class RunOptions(NamedTuple):
    """What a command asks for."""

    job: Job
    command: str  # this one
    selection: RowSelection
    simulator: SimulatorSettings | None  # null: with its defaults
    simulate: bool
    insecure_http: bool
    quiet: bool


class SourceCommand(OnceCommand):
    """A command for a SOURCE with these options; its function hands them to `read_options`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.params += [click.Argument(["source"]), *_options()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--retry-failed prompts.jsonl` is an option and a source: it never takes a word."""
        end = args.index("--") if "--" in args else len(args)
        given = [f"{word}=" if word == _RETRY_FAILED else word for word in args[:end]]
        return super().parse_args(ctx, [*given, *args[end:]])


def read_options(given: dict[str, Any]) -> RunOptions:
    """What the options say. Raises `JobError`."""
    settings = dict(given["set"])
    varied: dict[str, Any] = {}
    named = [*((option.rpartition("--")[2], key) for option, key, _, _ in _JOB_OPTIONS)]
    named += [("prompt-file", "request.input"), ("schema", "request.text.format")]
    for option, key in named:
        value = given[option.replace("-", "_")]
        if option == "model":
            if len(value) > 1:
                varied["model"] = list(value)
            value = value[0] if len(value) == 1 else None
        if value is not None and value is not False:
            if key in settings:
                other = "--prompt" if option == "prompt-file" else f"--set {key[8:]}=…"
                raise click.UsageError(f"--{option} and {other} set the same; take one out")
            settings[key] = value
    if "model" in varied and ("model" in given["vary"] or "request.model" in settings):
        raise click.UsageError(
            "several --model and --vary or --set model=… set the same; take one out"
        )
    if varied := {**varied, **given["vary"]}:
        settings["expand.vary"] = varied
    for key in ("input.carry", "input.send", "notify.urls"):
        if values := given["notify" if key == "notify.urls" else key.rpartition(".")[2]]:
            settings[key] = [value for value in values if value]
    if given["type"]:
        settings["input.types"] = given["type"]
    kinds: frozenset[str] | None = given["retry_failed"]
    typed = {key: value if key in _PATHS else _as_typed(value) for key, value in settings.items()}
    return RunOptions(
        load_job(given["source"], typed),
        shlex.join(["batchrun", *sys.argv[1:]]),
        RowSelection(
            given["limit"],
            given["sample_rows"] or 0,
            given.get("pilot") or 0,
            given["variant"],
            Resend(kinds is not None, kinds or frozenset(), given["rerun_changed"]),
        ),
        _simulator(given["answers"], given["right"], simulate=given["simulate"]),
        *(given[name] for name in ("simulate", "insecure_http", "quiet")),
    )


def _simulator(
    answers: tuple[str, ...], right: tuple[str, ...], *, simulate: bool
) -> SimulatorSettings | None:
    """What the embedded simulator knows."""
    if not answers and not right:
        return None
    if not simulate:
        raise click.UsageError("--answers and --right are options of the simulator; add --simulate")
    try:
        return SimulatorSettings(answers=answers, right=right)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _as_typed(value: Any) -> Any:
    """The value with its text as UTF-8, which a terminal sends whatever the locale says."""
    if isinstance(value, dict):
        return {_as_typed(name): _as_typed(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_typed(inner) for inner in value]
    if isinstance(value, str) and not value.isascii():
        with suppress(UnicodeEncodeError):
            return os.fsencode(value).decode("utf-8", "replace")
        return as_utf8(value)
    return value


def _options() -> list[click.Option]:
    return [
        *(_job_option(*each) for each in _JOB_OPTIONS),
        click.Option(
            ["--carry"],
            multiple=True,
            metavar="COLUMN",
            help="Column to carry; repeatable; '' for none. Default: all that are not sent.",
        ),
        click.Option(
            ["--send"],
            multiple=True,
            metavar="COLUMN",
            help="Column to send as the request field of its name; repeatable.",
        ),
        click.Option(
            ["--type"],
            multiple=True,
            callback=_types,
            metavar="COLUMN=TYPE",
            help="Type of a carried column: bool, int64, double, string or json; repeatable.",
        ),
        click.Option(
            ["--set"],
            multiple=True,
            callback=body_fields,
            metavar="KEY=VALUE",
            help="Any other body field, such as reasoning.effort=low; KEY=@FILE reads a file.",
        ),
        click.Option(
            ["--vary"],
            multiple=True,
            callback=varied_fields,
            metavar="KEY=A,B",
            help="Send each row with each of these values, such as reasoning.effort=low,high.",
        ),
        click.Option(
            ["--variant"],
            multiple=True,
            metavar="NAME",
            help="In this command, send only this variant; repeatable.",
        ),
        click.Option(
            ["--prompt-file"],
            callback=prompt_of_file,
            metavar="FILE",
            help="File with the template for --prompt.",
        ),
        click.Option(
            ["--schema"],
            callback=schema_of_file,
            metavar="FILE",
            help="JSON Schema of the answers; file.py:Model for a pydantic model.",
        ),
        click.Option(
            ["--sample-rows"],
            type=click.IntRange(1),
            metavar="N",
            help="Only N random rows, the same ones each time.",
        ),
        click.Option(
            ["--limit"], type=click.IntRange(1), metavar="N", help="Only the first N rows."
        ),
        click.Option(
            [_RETRY_FAILED],
            callback=_kinds,
            metavar="[=KIND,…]",
            help="Send failed rows again: all, or those of these error kinds, or incomplete ones.",
        ),
        click.Option(
            ["--rerun-changed"],
            is_flag=True,
            help="Send again rows whose request changed or whose part was deleted.",
        ),
        click.Option(
            ["--notify"],
            multiple=True,
            metavar="URL",
            help="Send messages to URL (or env:NAME): end, stall, 80 % of a cap; repeatable.",
        ),
        click.Option(
            ["--simulate"], is_flag=True, help="Use the embedded simulator: no key, no cost."
        ),
        click.Option(
            ["--answers"],
            multiple=True,
            metavar="FILE",
            help="With --simulate: a prompt set whose targets the simulator knows.",
        ),
        click.Option(
            ["--right"],
            multiple=True,
            metavar="[MODEL=]P[,SPREAD]",
            help="With --answers: share of right answers; SPREAD: how questions differ.",
        ),
        click.Option(
            ["--insecure-http"], is_flag=True, help="Allow a key over plain http to other hosts."
        ),
        click.Option(["--quiet"], is_flag=True, help="Show no progress."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
    ]


def _job_option(names: str, key: str, metavar: str | None, text: str) -> click.Option:
    section, _, name = key.partition(".")
    if section == "request":
        several = key == "request.model"
        return click.Option(names.split(","), multiple=several, metavar=metavar, help=text)
    if metavar is None:
        return click.Option(names.split(","), is_flag=True, help=text)
    defaults = {field.name: field.default for field in fields(get_type_hints(Job)[section])}
    if isinstance(defaults[name], str | int | float):
        text += f"  [default: {defaults[name]}]".replace(".0]", "]")

    def read(_context: click.Context, _option: click.Parameter, value: str | None) -> object:
        try:
            return None if value is None else read_setting(key, value)
        except JobError as error:
            raise click.BadParameter(str(error)) from None

    return click.Option(names.split(","), metavar=metavar, help=text, callback=read)


def _types(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    """Types by column."""
    types = {}
    for text in texts:
        column, equals, kind = text.rpartition("=")
        if not equals or not column or not kind:
            raise click.BadParameter(f"{text}: write COLUMN=TYPE, such as answer=string")
        types[column] = kind
    return types


def _kinds(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> frozenset[str] | None:
    """Kinds of failure with commas between them; empty text: all rows that failed."""
    if text is None:
        return None
    kinds = {word.strip() for word in text.split(",")} - {""}
    known = {*(kind.value for kind in ErrorKind), *ANSWERED} - {ErrorKind.INVALID_ROW.value}
    if unknown := sorted(kinds - known):
        raise click.BadParameter(
            f"{', '.join(map(repr, unknown))} is not an error kind that can be sent again; "
            f"{nearest(unknown[0], sorted(known))}"
        )
    return frozenset(kinds)
