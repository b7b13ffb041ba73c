"""The command that leads on from where a run stands. Pure."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchrun.records import FAILED

ESTIMATE_ONLY = ("--pilot", "--expect-output", "--models")  # options that `run` does not have
_DIGITS = 2  # of a cap: it is rounded up


def next_command(
    command: str | None,
    path: Path,
    exit_code: int,
    statuses: Mapping[str, int],
    example_id: str | None,
    *,
    cap_usd: float | None = None,
    left: int = 0,
) -> str | None:
    """Null where all is well or nothing is known.

    `cap_usd`: what to allow where the budget ended the run; `left`: rows of the source without an
    outcome.
    """
    words = [] if command is None else shlex.split(command)
    if exit_code in (0, 4) and left and words:  # a limit or a pilot is done
        return run_command(words if "--pilot" in words else _without_limit(words))
    if exit_code == 4:
        if words and any(statuses.get(status) for status in FAILED):
            return _with_option(run_command(_without_limit(words)), "--retry-failed")
        shown = "ID" if example_id is None else shlex.quote(example_id)
        return f"batchrun show {shlex.quote(str(path))} {shown}"
    if exit_code and command is not None and cap_usd is not None:
        return _with_option(command, "--max-cost", f"{cap_usd:.12f}".rstrip("0").rstrip("."))
    ended = {status for status, rows in statuses.items() if rows}
    if exit_code and command is not None and ended and ended <= set(FAILED):
        return _with_option(command, "--retry-failed")  # nothing but failures so far
    return command if exit_code else None


def _without_limit(words: Sequence[str]) -> list[str]:
    return _without(list(words), "--limit", has_value=True)


def run_command(words: Sequence[str]) -> str:
    """The command that goes on with all rows: after an `estimate --pilot` that of `run`."""
    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word in ESTIMATE_ONLY:
            next(given, None)
        elif word.partition("=")[0] not in ESTIMATE_ONLY:
            kept.append("run" if word == "estimate" and len(kept) == 1 else word)
    return shlex.join(kept)


def higher_cap_usd(
    spent_usd: float, left: int, cost_of_left_usd: float | None, next_usd: float
) -> float:
    """A cap with room for what is left, rounded up; where no cost is known yet, for the worst.

    `next_usd` is what a request reserves, which must fit too.
    """
    left_usd = left * next_usd if cost_of_left_usd is None else cost_of_left_usd + next_usd
    cap_usd = spent_usd + left_usd
    if not cap_usd > 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(cap_usd)) + 1 - _DIGITS)
    return round(math.ceil(cap_usd / unit) * unit, 12)


def _with_option(command: str, name: str, value: str | None = None) -> str:
    """The command with this option once, in the form `NAME VALUE`."""
    words = _without(shlex.split(command), name, has_value=value is not None)
    end = words.index("--") if "--" in words else len(words)
    option = [name] if value is None else [name, value]
    return shlex.join([*words[:end], *option, *words[end:]])


def _without(words: list[str], name: str, *, has_value: bool) -> list[str]:
    """The words without an option; `has_value`: what stands after it is its value."""
    end = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    for at, word in enumerate(words[:end]):
        is_value = has_value and at > 0 and words[at - 1] == name
        if word.partition("=")[0] != name and not is_value:
            kept.append(word)
    return [*kept, *words[end:]]
