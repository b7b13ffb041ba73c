"""Commands whose options stand once each; guesses at options are answered by what there is."""

from collections import Counter
from typing import Any

import click

_COST = "the cap on dollars is --max-cost USD"
_STOP = "the time to stop is --stop-at TIME: a time of day (06:30), a date and time, or 8h"
_AGAIN = "the same command continues where it stopped; leave this option out"
_ROWS = "only the first N rows: --limit N. Several answers to each row: --samples N"
_TOKENS = "the longest answer is --set max_output_tokens=N"
_FLIGHT = "the most requests in flight are --concurrency N"
_ATTEMPTS = "the most attempts for a row are --max-attempts N"
_KEY = (
    "a key is never an option: put it into $OPENAI_API_KEY, or name a variable: --api-key-env NAME"
)
_OUT = "the run directory is -o DIR"
_SOURCE = "the prompt set is the first argument: batchrun run FILE"
_URL = "the endpoint is --base-url URL"
_SCHEMA = "the schema of answers is --schema FILE"
_AGAIN_ALL = "a new run needs a new directory: -o DIR; failed rows are sent again by --retry-failed"
# Words that people try, without dashes, and what to say instead.
_GUESSES = {
    **dict.fromkeys(("budget", "cost-limit", "max-budget", "max-usd", "cost", "spend"), _COST),
    **dict.fromkeys(("deadline", "until", "stop-after", "max-time", "time-limit"), _STOP),
    **dict.fromkeys(("resume", "continue", "restart", "checkpoint"), _AGAIN),
    **dict.fromkeys(("n", "num", "num-samples", "max-rows", "rows", "head"), _ROWS),
    **dict.fromkeys(("max-tokens", "max-output-tokens", "max-completion-tokens"), _TOKENS),
    **dict.fromkeys(("workers", "parallel", "threads", "jobs", "j", "max-concurrency"), _FLIGHT),
    **dict.fromkeys(("max-concurrent", "max-workers", "batch-size", "num-workers"), _FLIGHT),
    **dict.fromkeys(("retries", "max-retries", "retry", "tries"), _ATTEMPTS),
    **dict.fromkeys(("api-key", "key", "token", "openai-api-key"), _KEY),
    **dict.fromkeys(("out", "output-dir", "output-file", "outdir", "dest", "run-dir"), _OUT),
    **dict.fromkeys(("input", "file", "data", "source", "dataset", "i", "f"), _SOURCE),
    **dict.fromkeys(("url", "api-base", "endpoint", "host", "base", "api-url"), _URL),
    **dict.fromkeys(("json-schema", "response-format", "response-schema"), _SCHEMA),
    **dict.fromkeys(("force", "overwrite", "restart-all", "clean"), _AGAIN_ALL),
    **dict.fromkeys(("system", "system-prompt", "instruction"), "it is --instructions TEXT"),
    **dict.fromkeys(("template", "prompt-template", "p"), "the template is --prompt TEXT"),
    **dict.fromkeys(("qpm", "rate-limit", "requests-per-minute"), "it is --rpm N"),
    "tokens-per-minute": "it is --tpm N",
    **dict.fromkeys(("rps", "qps"), "the limit is by the minute: --rpm N"),
    **dict.fromkeys(
        ("stream", "background"), "the way requests are made is --mode stream|background"
    ),
    **dict.fromkeys(("m", "model-name"), "the model is --model NAME"),
    "tools": "tools are --set tools=@FILE",
    **dict.fromkeys(("webhook", "slack", "mail", "email", "notify-url"), "it is --notify URL"),
    "dry": "it is --dry-run",
    "verbose": "batchrun prints everything by default; --quiet prints less",
}
_EFFORT = ("reasoning-effort", "effort", "reasoning")
# Fields of the request, which --set gives.
_FIELDS = (
    *("temperature", "top-p", "service-tier", "store", "metadata", "seed", "stop", "top-k"),
    *("truncation", "user", "tool-choice", "parallel-tool-calls", "max-tool-calls", "verbosity"),
    *("presence-penalty", "frequency-penalty", "logprobs", "top-logprobs", "include", "text"),
)


class OnceCommand(click.Command):
    """A command that refuses an option given twice, and answers common guesses."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
        except click.NoSuchOption as error:
            said = _instead(error.option_name)
            if said is None:
                raise
            raise click.UsageError(f"there is no {error.option_name}: {said}", ctx) from None
        given = Counter(one.name for one in order if _stands_once(one))
        for one in order:
            if given[one.name] > 1:
                raise click.UsageError(
                    f"{max(one.opts, key=len)} is given {given[one.name]} times; give it once",
                    ctx,
                )
        return super().parse_args(ctx, args)


def _stands_once(one: Any) -> bool:
    return isinstance(one, click.Option) and not one.multiple and not one.count


def _instead(option: str) -> str | None:
    """What there is in place of an option that there is not; None where nobody knows."""
    word = option.lstrip("-").replace("_", "-").lower()
    if word in _EFFORT:
        return "it is --set reasoning.effort=low"
    if word == "verbosity":
        return "it is --set text.verbosity=low"
    if word in _FIELDS:
        return f"fields of the request are given by --set: --set {word.replace('-', '_')}=VALUE"
    return _GUESSES.get(word)
