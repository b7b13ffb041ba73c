"""`batchrun simulate`: the simulator as a server, until a signal ends it.

Its options are made from the fields of `SimulatorSettings`.
"""

import contextlib
import dataclasses
import os
from typing import Any, get_args, get_type_hints

import click

from batchrun.cli.once import OnceCommand
from batchrun.simulator.settings import SPREAD, Fault, Quirk, SimulatorSettings

_EPILOG = f"""\b
Examples:
  batchrun simulate
  batchrun simulate --port 0 --seed 7 --latency 0.2 --faults 0.1
  batchrun simulate --rpm 600 --tpm 90000 --no-hints
  batchrun simulate --fault 502_html=0.05 --fault stalled_body=0.01
  batchrun simulate --quirk no_event_lines --quirk null_usage
  batchrun simulate --answers prompts.jsonl --right 0.7,0.2

\b
Then, in another shell:
  batchrun run prompts.jsonl --prompt '{{{{ question }}}}' --model m \\
    --base-url http://127.0.0.1:8080/v1
  curl http://127.0.0.1:8080/stats

Faults that --faults spreads over: {", ".join(SPREAD)}.

Faults by name only: {", ".join(fault for fault in Fault if fault not in SPREAD)}.

Quirks: {", ".join(Quirk)}.

docs/simulator.md explains each of them.
"""


def _options() -> list[click.Parameter]:
    """An option for each setting."""
    hints = get_type_hints(SimulatorSettings)
    return [_option(field, hints[field.name]) for field in dataclasses.fields(SimulatorSettings)]


def _option(field: dataclasses.Field[Any], hint: Any) -> click.Option:
    """Its name, type, default and help are those of the field; `least` and `most` its range."""
    about = field.metadata
    name = about["option"] or "--" + field.name.removesuffix("_s").replace("_", "-")
    arguments: dict[str, Any] = {"help": about["help"], "metavar": about["metavar"]}
    if field.name in _CALLBACKS:
        arguments["callback"] = _CALLBACKS[field.name]
        arguments["multiple"] = field.name == "fault_rates"
    elif hint is bool:
        arguments |= {"is_flag": True, "callback": _is_absent}
    elif field.default == ():
        arguments["multiple"] = True
    else:
        if about["least"] is not None:
            type_ = click.IntRange if int in (hint, *get_args(hint)) else click.FloatRange
            arguments["type"] = type_(about["least"], about["most"])
        is_shown = field.default is not None and about["metavar"] is None
        arguments |= {"default": field.default, "show_default": is_shown}
    return click.Option([name, field.name], **arguments)


def _is_absent(_context: click.Context, _option: click.Parameter, given: bool) -> bool:
    return not given


def _fault_rates(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float]:
    rates = {}
    for text in texts:
        kind, _, rate = text.partition("=")
        try:
            rates[kind.strip()] = float(rate)
        except ValueError:
            raise click.UsageError(
                f"--fault {text}: write KIND=RATE with a rate between 0 and 1, such as "
                "502_html=0.05"
            ) from None
    return rates


def _required_key(
    _context: click.Context, _option: click.Parameter, name: str | None
) -> str | None:
    key = os.environ.get(name, "").strip() if name is not None else None
    if key == "":
        raise click.UsageError(
            f"--require-key-env {name}: the environment variable is not set; set it to the key "
            "that clients must send"
        )
    return key


_CALLBACKS = {"api_key": _required_key, "fault_rates": _fault_rates}


_ADDRESS = [
    click.Option(["--host"], default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.Option(
        ["--port"],
        default=8080,
        show_default=True,
        type=click.IntRange(0, 65535),
        help="Port to listen on; 0 picks a free one.",
    ),
]


@click.command(epilog=_EPILOG, params=[*_ADDRESS, *_options()], cls=OnceCommand)
def simulate(host: str, port: int, **options: Any) -> None:
    """Serve simulated answers in the format of the Responses API.

    Prints the base URL on one line once it listens, and runs until Ctrl-C or SIGTERM. No key, no
    network, no cost. GET /stats counts what was served, GET /stats?by=body does so by request body.
    """
    import asyncio

    try:
        settings = SimulatorSettings(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _allow_many_connections()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, host, port))
    except ValueError as error:  # the file of answers
        raise click.UsageError(str(error)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.UsageError(
            f"cannot listen on {host}, port {port}: {reason}; choose another port with --port "
            "(0 picks a free one)"
        ) from error


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


async def _serve(settings: SimulatorSettings, host: str, port: int) -> None:
    import asyncio
    import signal

    from batchrun.simulator.server import serve

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serve(settings, host, port) as base_url:
        click.echo(base_url)  # flushes, so that a script may wait for this line
        await stop.wait()
