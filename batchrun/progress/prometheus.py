"""A summary in the text format of Prometheus, for the textfile collector of its node exporter.

Counters are what only grows; rows and tokens are gauges, since a row that is sent again replaces
its outcome. What is not known has no sample. See
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import not_ok_counts
from batchrun.records import FAILED, SHORTFALLS

GOES_ON = ("planning", "running", "stopping")
ENDED = ("finished", "limited", "stopped", "interrupted", "failed", "killed")
WORKER_STATES = ("starting", "running", "silent", "draining", "lost", "adopted", "ended")
PAUSES = ("cooldown", "endpoint down")
OUTCOMES = (
    *("ok", "truncated", "refused"),
    *(kind.value for kind in SHORTFALLS[2:]),
    *("incomplete", *FAILED, "invalid"),
)
_Sample = tuple[dict[str, str], float | None]


class Metric(Struct, frozen=True):
    """One metric: its name without the prefix, its type, what it means, its samples."""

    name: str
    kind: str
    help: str
    samples: tuple[_Sample, ...]


def prometheus_text(summary: Summary, path: Path) -> bytes:
    """All metrics of a run. The label `run` is the run directory, absolute."""
    run = {"run": str(path.absolute())}
    lines: list[str] = []
    for metric in metrics(summary):
        known = [(labels, value) for labels, value in metric.samples if value is not None]
        if known:
            name = f"batchrun_{metric.name}"
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
            lines += [f"{name}{_braces(run | labels)} {_number(value)}" for labels, value in known]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def metrics(summary: Summary) -> Iterator[Metric]:
    """Every metric there is; a sample of None is left out."""
    outcomes = {"ok": summary.ok, **not_ok_counts(summary)}
    states = (*GOES_ON, *ENDED)
    state = summary.state if summary.state in states else "running"

    yield _by("state", "1 for the state that the run is in.", "state", states, {state: 1})
    yield _one("rows", "Rows of the input.", summary.source_rows or summary.rows)
    yield _one("rows_asked", "Rows complete once the last command is done.", summary.rows)
    yield _one("rows_remaining", "Rows of the input without a final outcome.", summary.left)
    yield _by("rows_complete", "Complete rows by outcome.", "outcome", OUTCOMES, outcomes)
    kinds = {kind: n for kind, n in summary.error_kinds.items() if kind not in SHORTFALLS}
    yield _by("row_errors", "Rows without an answer by kind of error.", "kind", kinds, kinds)
    attempts = {"first": summary.attempts, "retry": summary.retries, "reask": summary.reasks}
    attempts["hedge"] = summary.hedges
    attempts["first"] -= summary.retries + summary.reasks + summary.hedges
    yield Metric(
        "attempts_total",
        "counter",
        "Attempts of complete rows by kind.",
        tuple(({"kind": kind}, count) for kind, count in attempts.items()),
    )
    yield Metric(
        "cost_usd_total",
        "counter",
        "Dollars of all attempts whose cost is known; no sample where none is.",
        (({}, summary.cost_usd),),
    )
    yield _one("unpriced_rows", "Rows with attempts of unknown cost.", summary.unpriced)
    yield _one("max_cost_usd", "The cap of --max-cost.", summary.cap_usd)
    tokens = {
        "input": summary.input_tokens,
        "cached": summary.cached_tokens,
        "output": summary.output_tokens,
        "reasoning": summary.reasoning_tokens,
    }
    words = "Tokens of the answers that count; cached ones are part of the input, reasoning ones of"
    yield _by("tokens", f"{words} the output.", "type", tokens, tokens)
    yield _one("tool_calls", "Tool calls in the answers that count.", summary.tool_calls)
    yield _one("exit_code", "Exit code of the command that ended last.", summary.exit_code)
    if state in ENDED:
        return
    yield _one("requests_in_flight", "Requests in flight.", summary.in_flight)
    most = summary.most_in_flight
    yield _one("requests_in_flight_limit", "What limits allow in flight at the moment.", most)
    yield _one("rows_waiting_for_retry", "Rows waiting for a retry.", summary.retrying)
    paused = {summary.paused_by: 1} if summary.paused_by else {}
    yield _by("paused", "1 for what pauses all sending at the moment.", "by", PAUSES, paused)
    if summary.workers:
        now = Counter(one.state for one in summary.workers)
        yield _by("workers", "Workers of this command by state.", "state", WORKER_STATES, now)
    left_s = summary.time_left_s
    yield _one("time_left_seconds", "Until all rows asked for are complete, estimated.", left_s)
    words = "Latency of the answers of this command"
    yield _one("latency_p50_seconds", f"{words}: median.", summary.p50_s)
    yield _one("latency_p99_seconds", f"{words}: 99th percentile.", summary.p99_s)


def _one(name: str, words: str, value: float | None) -> Metric:
    return Metric(name, "gauge", words, (({}, value),))


def _by(
    name: str,
    words: str,
    label: str,
    values: Iterable[str],
    counts: Mapping[str, int],
) -> Metric:
    """A gauge with a sample for each value of a label; those that are not counted are 0."""
    samples = tuple(({label: value}, counts.get(value, 0)) for value in values)
    return Metric(name, "gauge", words, samples)


def _braces(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
