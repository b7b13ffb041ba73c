"""`batchrun simulate`: the simulator as a server, until a signal ends it."""

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from batchrun.simulator.kinds import SPREAD, Fault, Quirk

if TYPE_CHECKING:
    from batchrun.simulator.behavior import Behavior

_RATE = click.FloatRange(0, 1)
_POSITIVE = click.FloatRange(0, min_open=True)


_EPILOG = f"""\b
Examples:
  batchrun simulate
  batchrun simulate --port 0 --seed 7 --latency 0.2 --faults 0.1
  batchrun simulate --rpm 600 --tpm 90000 --no-hints
  batchrun simulate --fault 502_html=0.05 --fault stalled_body=0.01
  batchrun simulate --quirk no_event_lines --quirk null_usage

\b
Then, in another shell:
  batchrun run prompts.jsonl --model gpt-4.1 --base-url http://127.0.0.1:8080/v1
  curl http://127.0.0.1:8080/stats

Faults that --faults spreads over: {", ".join(SPREAD)}.

Faults to ask for by name: {", ".join(fault for fault in Fault if fault not in SPREAD)}.

Quirks: {", ".join(Quirk)}.

What each of them does is told in docs/simulator.md.
"""


@click.command(epilog=_EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Same seed, same answers and same faults."
)
@click.option(
    "--latency",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0),
    help="Median seconds until an answer, drawn anew for each attempt.",
)
@click.option(
    "--latency-spread",
    default=0.35,
    show_default=True,
    type=click.FloatRange(0),
    help="How far latencies stray (sigma of a lognormal); 0 for always the same.",
)
@click.option(
    "--output-tokens",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Median length of an answer in text, in tokens.",
)
@click.option(
    "--output-spread",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0),
    help="How far lengths stray (sigma of a lognormal).",
)
@click.option("--rpm", type=_POSITIVE, help="Requests a minute for each model; more get 429.")
@click.option("--tpm", type=_POSITIVE, help="Tokens a minute for each model; more get 429.")
@click.option(
    "--burst",
    default=60.0,
    show_default=True,
    type=_POSITIVE,
    help="How many seconds of --rpm and --tpm may come at once.",
)
@click.option("--no-hints", is_flag=True, help="No x-ratelimit-* headers and no Retry-After.")
@click.option(
    "--max-in-flight", type=click.IntRange(0), help="Requests at one time; one more gets 503."
)
@click.option("--quota", type=click.IntRange(0), help="Answers until the quota is used up.")
@click.option(
    "--require-key-env",
    metavar="NAME",
    help="Demand the bearer key that this environment variable holds; others get 401.",
)
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model to know; repeat.")
@click.option(
    "--faults",
    default=0.0,
    type=_RATE,
    metavar="RATE",
    help="Share of attempts that meet a fault, in equal parts over the kinds named below.",
)
@click.option(
    "--fault",
    "named_faults",
    multiple=True,
    metavar="KIND=RATE",
    help="Share of attempts that meet this kind of fault; repeat.",
)
@click.option(
    "--quirk",
    "quirks",
    multiple=True,
    metavar="NAME",
    help="What a gateway does to every answer; repeat.",
)
@click.option(
    "--retry-after",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds that the fault 429_hint and its like ask to wait.",
)
@click.option(
    "--bad-arguments",
    default=0.0,
    type=_RATE,
    metavar="RATE",
    help="Share of calls whose arguments are malformed or do not fit their schema.",
)
@click.option(
    "--bad-output",
    default=0.0,
    type=_RATE,
    metavar="RATE",
    help="Share of structured answers that are malformed or do not fit their schema.",
)
@click.option(
    "--refusals", default=0.0, type=_RATE, metavar="RATE", help="Share of answers that refuse."
)
@click.option(
    "--never-accept", is_flag=True, help="Let connections hang: a server that never answers them."
)
def simulate(host: str, port: int, **options: Any) -> None:
    """Serve made-up answers in the way of the Responses API.

    Prints the base URL on one line once it listens, and runs until Ctrl-C or SIGTERM. No key, no
    network, no cost. GET /stats counts what was served, and /stats?by=body tells it body by body.
    """
    import asyncio

    behavior = _behavior(options)
    _allow_many_connections()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(behavior, host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.UsageError(
            f"cannot listen on {host}, port {port}: {reason}; choose another port with --port "
            "(0 picks a free one)"
        ) from error


def _behavior(options: dict[str, Any]) -> "Behavior":
    from batchrun.simulator.behavior import Behavior

    try:
        return Behavior(
            seed=options["seed"],
            latency_s=options["latency"],
            latency_spread=options["latency_spread"],
            output_tokens=options["output_tokens"],
            output_spread=options["output_spread"],
            requests_per_minute=options["rpm"],
            tokens_per_minute=options["tpm"],
            burst_s=options["burst"],
            hints=not options["no_hints"],
            max_in_flight=options["max_in_flight"],
            accepts=not options["never_accept"],
            api_key=_required_key(options["require_key_env"]),
            models=options["models"],
            quota=options["quota"],
            faults=options["faults"],
            fault_rates=dict(_fault_rate(text) for text in options["named_faults"]),
            retry_after_s=options["retry_after"],
            bad_arguments=options["bad_arguments"],
            bad_output=options["bad_output"],
            refusals=options["refusals"],
            quirks=options["quirks"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _fault_rate(text: str) -> tuple[str, float]:
    kind, _, rate = text.partition("=")
    try:
        return kind.strip(), float(rate)
    except ValueError:
        raise click.UsageError(
            f"--fault {text}: write KIND=RATE with a rate between 0 and 1, such as 502_html=0.05"
        ) from None


def _required_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise click.UsageError(
            f"--require-key-env {name}: the environment variable is not set; set it to the key "
            "that clients must send"
        )
    return key


def _allow_many_connections() -> None:
    """As many as the system lets this process ask for; often 1,024 where nobody asks."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # some systems refuse what they call unlimited; the limit then stays as it is
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # there is none for this platform
        return None
    return uvloop.new_event_loop


async def _serve(behavior: "Behavior", host: str, port: int) -> None:
    import asyncio
    import signal

    from batchrun.simulator.server import serve

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serve(behavior, host, port) as base_url:
        click.echo(base_url)  # flushes, so that a script may wait for this line
        await stop.wait()
