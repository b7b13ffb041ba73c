"""The options that say what job a command is about: those of `run` and `estimate`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchrun.errors import JobError

if TYPE_CHECKING:
    from batchrun.job.sections import Job

Command = TypeVar("Command", bound=Callable[..., Any])


class _CountOr(click.ParamType[int | str]):
    """A count from 1, or another word that the job file takes too."""

    def __init__(self, name: str, is_word: Callable[[str], bool]) -> None:
        self.name = name
        self._is_word = is_word

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if self._is_word(text):
            return text
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            self.fail(f"{text!r} is neither a number from 1 nor {self.name}", param, ctx)
        return int(text)


_COUNT_OR_AUTO = _CountOr("auto", lambda word: word == "auto")
_COUNT_OR_SHARE = _CountOr("a share such as 5%", lambda word: word.endswith("%"))


_OPTIONS = (
    click.option("-o", "--output", metavar="DIR", help="Run directory.  [default: runs/NAME]"),
    click.option("--model", metavar="NAME", help="Model, for rows that name none."),
    click.option("--prompt", metavar="TEXT", help="Jinja2 template that makes the input of a row."),
    click.option("--instructions", metavar="TEXT", help="Instructions; may be a template too."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other body field, dotted: reasoning.effort=low.",
    ),
    click.option(
        "--base-url", metavar="URL", help="Endpoint.  [default: $OPENAI_BASE_URL or OpenAI]"
    ),
    click.option(
        "--mode",
        type=click.Choice(["plain", "stream", "background"]),
        help="How each request is made.  [default: plain]",
    ),
    click.option(
        "--api-key-env",
        metavar="NAME",
        help="Variable that holds the key, or none.  [default: OPENAI_API_KEY]",
    ),
    click.option(
        "--concurrency",
        type=_COUNT_OR_AUTO,
        metavar="N",
        help="Most requests in flight.  [default: auto, adapted up to 1000]",
    ),
    click.option(
        "--rpm",
        type=click.IntRange(1),
        metavar="N",
        help="Most requests a minute.  [default: learnt]",
    ),
    click.option(
        "--tpm",
        type=click.IntRange(1),
        metavar="N",
        help="Most tokens a minute.  [default: learnt]",
    ),
    click.option(
        "--max-cost",
        type=click.FloatRange(0),
        metavar="USD",
        help="Stop before spending more, over all commands of this run.",
    ),
    click.option(
        "--max-failures",
        type=_COUNT_OR_SHARE,
        metavar="N|P%",
        help="Stop after N failed rows, or when P% of the last rows failed.",
    ),
    click.option(
        "--give-up-after",
        type=click.FloatRange(0),
        metavar="S",
        help="Seconds that the endpoint may be down.  [default: 1800]",
    ),
    click.option("--hedge", is_flag=True, help="Send second copies of the last slow rows."),
    click.option(
        "--max-attempts", type=click.IntRange(1), metavar="N", help="Tries for a row.  [default: 6]"
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        help="Seconds for one try.  [default: 600]",
    ),
    click.option("--skip-bad-rows", is_flag=True, help="Bad rows become rows of status invalid."),
)
# A job's key for each of them, but for --set.
_KEYS = {
    "output": "output.path",
    "model": "request.model",
    "prompt": "request.input",
    "instructions": "request.instructions",
    "base_url": "endpoint.base_url",
    "mode": "endpoint.mode",
    "api_key_env": "endpoint.api_key_env",
    "concurrency": "limits.concurrency",
    "rpm": "limits.requests_per_minute",
    "tpm": "limits.tokens_per_minute",
    "max_cost": "limits.max_cost_usd",
    "max_failures": "limits.max_failures",
    "give_up_after": "limits.give_up_after_s",
    "hedge": "limits.hedge",
    "max_attempts": "retry.max_attempts",
    "timeout": "endpoint.timeout_s",
    "skip_bad_rows": "input.skip_bad_rows",
}


def job_options(command: Command) -> Command:
    """Gives a command these options; what they say is the first argument of `read_job`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_job(source: str, said: dict[str, Any]) -> "Job":
    """The job of a source with what the options say. Raises `JobError`."""
    from batchrun.job.job_file import load_job

    settings = {
        key: said[name]
        for name, key in _KEYS.items()
        if said[name] is not None and said[name] is not False
    }
    settings.update(_body_field(text) for text in said["sets"])
    return load_job(source, settings)


def _body_field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise JobError(f"--set {text}: write KEY=VALUE, such as --set reasoning.effort=low")
    import json

    try:
        return f"request.{key}", json.loads(value)
    except ValueError:
        return f"request.{key}", value
