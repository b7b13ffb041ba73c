"""A summary as text: the end of a run, `status`, and the words that progress shares with them.

What comes from rows or servers is made printable: no escape sequence of theirs reaches a terminal.
"""

import shlex
from collections import Counter
from pathlib import Path

from batchrun.formats.amounts import (
    duration,
    known_usd,
    plural,
    rate,
    seconds,
    short_count,
    time_left,
    usd,
)
from batchrun.formats.printable import (
    named,
    one_line,
    pricing_tables,
    printable,
    shell_command,
)
from batchrun.job.expansion import Expansion
from batchrun.progress.summary import Summary, WorkerState
from batchrun.records import FAILED, SHORTFALLS, RunRecord

# Options that leave rows to later commands. `--where` is none: it says which rows are meant at all.
PARTS = ("--limit", "--sample-rows", "--variant", "--pilot")
RESEND = ("--retry-failed", "--rerun-changed")  # options that send rows again
_EXAMPLE = 200  # characters of a message
_ID = 60  # characters of a row's id
# Kinds of answers that are not ok: those counted in words, and those by their kind.
_SAID_BY_COUNT, _UNUSABLE = SHORTFALLS[:2], SHORTFALLS[2:]


def render_end(summary: Summary, run: Path | str) -> str:
    """The results, where the tables are and how to read them, and the next command.

    `run`: its path or URL.
    """
    state = {"finished": "done", "stopped": "stopped early"}.get(summary.state, summary.state)
    counts = [rows_in_words(summary), f"{summary.ok:,} ok", *not_ok_in_words(summary)]
    lines = [f"{state}: {', '.join(counts)}"]
    for kind, count in Counter(summary.error_kinds).most_common():
        if kind in _SAID_BY_COUNT:
            continue
        example = " ".join(summary.error_examples.get(kind, "").split())
        lines.append(f"  {kind} {count:,}" + (f": {example[:_EXAMPLE]}" if example else ""))
    speed = f"; {rate(summary.rows_per_s)} over {duration(summary.sent_s)}"
    if summary.settled > summary.completed:
        speed += " of this command"
    lines.append(
        f"  tokens: {summary.input_tokens:,} in ({summary.cached_tokens:,} cached), "
        f"{summary.output_tokens:,} out ({summary.reasoning_tokens:,} reasoning)"
        f"{_of_counted_answers(summary)}; {plural(summary.tool_calls, 'tool call')}"
    )
    lines.append(f"  attempts: {_attempts(summary)}{speed if summary.rows_per_s else ''}")
    if (cost := cost_in_words(summary)) is not None:
        lines.append(f"  cost: {cost}")
    if summary.settled:
        place = str(run).partition("?region=")[0]
        responses = f"{place}/responses"
        lines += [
            f"tables: {responses}/*.parquet, {place}/tool_calls/*.parquet",
            f"  python -c \"import duckdb; print(duckdb.read_parquet('{responses}/*.parquet'))\"",
            f"  python -c \"import pandas; print(pandas.read_parquet('{responses}'))\"",
        ]
    if summary.message:
        is_end = summary.state in ("limited", "finished")
        lines.append(summary.message if is_end else f"why: {summary.message}")
    return printable("\n".join([*lines, *next_in_words(summary)]))


def render_status(summary: Summary, run: Path | str) -> str:
    """The summary as lines of names and words."""
    not_ok = "; ".join(filter(None, (", ".join(not_ok_in_words(summary)), _errors(summary))))
    tokens = f"{summary.input_tokens:,} in, {summary.output_tokens:,} out"
    live = {
        "in flight": f"{summary.in_flight:,}, {summary.retrying:,} waiting for a retry",
        "rate": ", ".join([rate(summary.rows_per_s), *_speed(summary)]),
        "limited by": one_line(summary.binds or ""),
        "limits": "; ".join(map(one_line, summary.limits)) or "-",
        "oldest": oldest_in_words(summary),
        "workers": workers_in_words(summary),
        **{f"  {one.id}": worker_in_words(one) for one in summary.workers},
        "time left": time_left_in_words(summary),
    }
    name, message = "why", summary.message
    if message and summary.state == "limited":
        name, _, message = message.partition(": ")
    elif summary.state == "finished":
        name = "note"
    words = {
        "state": summary.state,
        "rows": f"{rows_in_words(summary, is_named=True)}{_expanded(summary)}",
        "ok": f"{summary.ok:,}",
        "not ok": f"{summary.not_ok:,}" + (f" ({not_ok})" if not_ok else ""),
        "remaining": f"{summary.left:,}",
        **(live if summary.exit_code is None else {}),
        "attempts": _attempts(summary),
        "tokens": tokens + _of_counted_answers(summary),
        "cost": cost_in_words(summary),
        "tool calls": f"{summary.tool_calls:,}",
        name: message,
        "next step": next_step(summary),
        "next": summary.next_command and shell_command(summary.next_command),
    }
    lines = [f"  {name + ':':<12}{text}" for name, text in words.items() if text]
    return printable("\n".join([str(run), *lines]))


def _expanded(summary: Summary) -> str:
    """` (5 rows x 2 variants x 4 samples)`; empty without samples and variants."""
    expansion = Expansion(summary.samples, summary.variants or (None,))
    rows = max(summary.rows, summary.source_rows) // expansion.width
    return "" if expansion.is_plain else f" ({expansion.in_words(rows)})"


def rows_in_words(summary: Summary, *, is_named: bool = False) -> str:
    """`12 of 20 rows (80 more not asked for)`: how much is complete of what the command is to do.

    What it is not to do is in the input, but beyond `--limit`, or left out by other options.
    `is_named`: the line says already that these are rows.
    """
    more = f" ({summary.not_asked:,} more not asked for)" if summary.not_asked else ""
    of = f"{summary.rows:,}" if is_named else plural(summary.rows, "row")
    return f"{summary.settled:,} of {of}{more}"


def so_far_in_words(record: RunRecord, state: str, stored: int) -> str | None:
    """That figures are over a part of the rows; None where they are over all.

    `state`: as `status` says it; `stored`: rows in the tables.
    """
    left, not_asked = record.left(stored)
    why = {"running": "the run is still going on", "killed": "the last command was killed"}
    words = [why[state]] if state in why else []
    of = f"{left:,} of {plural(record.rows, 'row')}"
    if left > not_asked:
        but = f" ({not_asked:,} not asked for)" if not_asked else ""
        words.append(f"{of} have no outcome yet{but}")
    elif left:
        words.append(f"{of} were not asked for")
    if record.again and state not in why:
        words.append(f"{plural(record.again, 'row')} still to be sent again, included as before")
    return f"{'; '.join(words)}: these are the rows that are complete so far" if words else None


def facts_in_words(summary: Summary) -> dict[str, list[str]]:
    """What is said of requests, speed and money while a run goes on, by the name of its line."""
    most = "" if summary.most_in_flight is None else f" of {summary.most_in_flight:,}"
    extra = summary.retries + summary.reasks + summary.hedges + summary.resent + summary.more_tries
    requests = [f"{summary.in_flight:,}{most} in flight"]
    if summary.retrying:
        requests.append(f"{summary.retrying:,} waiting for a retry")
    requests.append(plural(extra, "extra attempt"))
    facts = {"requests": requests, "speed": _speed(summary), "cost": _money(summary)}
    if summary.workers:
        facts["workers"] = [workers_in_words(summary)]
    return {name: words for name, words in facts.items() if words}


def progress_in_words(summary: Summary) -> list[list[str]]:
    """The same with outcomes and errors, for a line of text."""
    errors = [f"errors ({words})"] if (words := _errors(summary)) else []
    outcomes = [f"{summary.ok:,} ok", *not_ok_in_words(summary)]
    facts = facts_in_words(summary)
    if workers := facts.pop("workers", None):
        facts["workers"] = [f"workers: {workers[0]}"]
    return [[*outcomes, *facts.pop("requests")], *facts.values(), *([errors] if errors else [])]


def _money(summary: Summary) -> list[str]:
    """What was spent, what that comes to in all, and the cap; empty where nothing is paid."""
    if summary.simulated:
        return []
    words = []
    is_partly = bool(summary.unknown_attempts or summary.unknown_usd)
    if summary.cost_usd is not None or is_partly:
        known = known_usd(summary.cost_usd, is_partly=is_partly)
        words.append(f"{known} so far" if known == "unknown" else f"{known} spent")
    if summary.unknown_usd:
        words.append(f"at most {usd(summary.unknown_usd)} more")
    if summary.projected_usd is not None and summary.settled < summary.rows:
        words.append(f"about {usd(summary.projected_usd)} in all")
    if unpriced := _unpriced(summary):
        words.append(f"no price for {named(unpriced)}")
    if summary.cap_usd is not None:
        words.append(f"cap {usd(summary.cap_usd)}")
    return words


def time_left_in_words(summary: Summary) -> str:
    """`20 min`; empty where it is not known, also while nothing more is sent."""
    left_s = summary.time_left_s
    if left_s is None or summary.state == "stopping" or summary.paused_by == "endpoint down":
        return ""
    return time_left(left_s)


def workers_in_words(summary: Summary) -> str:
    """`3 running, 1 adopted`; empty where the run's own process sends all."""
    states = Counter(one.state for one in summary.workers)
    return ", ".join(f"{count} {state}" for state, count in states.items())


_QUIET_S = 3.0  # of silence that is not worth a word


def worker_in_words(one: WorkerState) -> str:
    """`running, gpu-3 (process 4711): 1,200 rows, 32 in flight, 4 waiting, 34 % of the limits`."""
    where = f", {one_line(one.host)} (process {one.pid})" if one.host else ""
    facts = [plural(one.completed, "row")]
    if one.state in ("running", "silent", "draining"):
        facts.append(f"{one.in_flight:,} in flight")
        if one.waiting:
            facts.append(f"{one.waiting:,} waiting")
        if one.share is not None:
            facts.append(f"{one.share:.0%} of the limits")
        if one.silent_s >= _QUIET_S:
            facts.append(f"silent for {duration(one.silent_s)}")
    return f"{one.state}{where}: {', '.join(facts)}"


def not_ok_counts(summary: Summary) -> dict[str, int]:
    """All rows that are not ok, by the kind of their answer, or by their status without one."""
    statuses = {status: summary.statuses.get(status, 0) for status in (*FAILED, "invalid")}
    counts = {"truncated": summary.truncated, "refused": summary.refused}
    counts |= {kind.value: summary.error_kinds.get(kind, 0) for kind in _UNUSABLE}
    others = summary.not_ok - sum(counts.values()) - sum(statuses.values())
    if others < 0:  # rows that are both: their kind is that of the refusal
        counts["truncated"] += others
    else:  # cut off for another reason than their length, as by a content filter
        counts["incomplete"] = others
    return {what: count for what, count in {**counts, **statuses}.items() if count > 0}


def not_ok_in_words(summary: Summary) -> list[str]:
    """`53 truncated`, `27 refused`, `9 empty_output`, `42 failed`: all rows that are not ok."""
    return [f"{count:,} {what}" for what, count in not_ok_counts(summary).items()]


def _errors(summary: Summary) -> str:
    """`timeout 12, rate_limit 3`: why rows have no answer, the most frequent first."""
    kinds = Counter(summary.error_kinds).most_common()
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds if kind not in SHORTFALLS)


_ABOVE = 1.1  # the speed is a mean over half a minute, and may be above a limit of now


def _speed(summary: Summary) -> list[str]:
    """How fast it goes, and how fast limits would let it go, unless it has been faster."""
    rates = (
        (summary.requests_per_s, summary.most_requests_per_s, "requests/s"),
        (summary.tokens_per_s, summary.most_tokens_per_s, "tokens/s"),
    )
    words = []
    for now, most, unit in rates:
        of = "" if most is None or now > _ABOVE * most else f" of {short_count(most)}"
        words.append(f"{short_count(now)}{of} {unit}")
    if summary.p50_s is not None and summary.p99_s is not None:
        words.append(f"p50 {seconds(summary.p50_s)}, p99 {seconds(summary.p99_s)}")
    return words


def oldest_in_words(summary: Summary) -> str:
    """`3 rows, the oldest for 6 min 52 s (id-7, id-9, id-12)`; empty before the last rows."""
    if not summary.oldest:
        return ""
    rows = plural(summary.rows - summary.settled, "row")
    names = ", ".join(one_line(named[:_ID]) for named, _ in summary.oldest)
    return f"{rows}, the oldest for {duration(summary.oldest[0][1])} ({names})"


def _attempts(summary: Summary) -> str:
    """`1,319, of them 12 retries, 3 reasks`; while rows remain, those of complete rows alone."""
    kinds = {"reask": summary.reasks, "hedge": summary.hedges}
    named = [plural(summary.retries, "retry", "retries")]
    named += [plural(count, kind) for kind, count in kinds.items() if count]
    named += [f"{summary.resent:,} resent"] if summary.resent else []
    whose = " of complete rows" if summary.left else ""
    more = (
        f"; {summary.more_tries:,} more for rows without an outcome" if summary.more_tries else ""
    )
    return f"{summary.attempts:,}{whose}, of them {', '.join(named)}{more}"


def _of_counted_answers(summary: Summary) -> str:
    """What tokens are counted of, where the cost includes other answers."""
    others = summary.reasks + summary.hedges + summary.resent
    return ", of the answers that counted" if others else ""


def cost_in_words(summary: Summary) -> str | None:
    """What the run directory has cost, and what is not known of it; None before the first send."""
    count, most_usd = summary.unknown_attempts, summary.unknown_usd
    parts = []
    if count or most_usd:
        known = known_usd(summary.cost_usd, is_partly=True)
        parts.append(known + (f", at most {usd(most_usd)} more" if most_usd else ""))
        attempts = plural(count, "attempt") if count else "some attempts"
        if not (unpriced := _unpriced(summary)):
            # Of attempts in no table the usage was perhaps lost: with a process, or by a disk.
            some = "the cost of some attempts is not known"
            parts.append(f"{attempts} reported no usage" if count else some)
        else:
            parts.append(
                f"no price for {attempts} (add {pricing_tables(unpriced)} to "
                "~/.config/batchrun/prices.toml, for an alias the name that it stands for, then "
                "batchrun cost recalculates it)"
            )
    elif summary.cost_usd is not None:
        parts.append(usd(summary.cost_usd))
    if summary.unfinished:
        paid = f"{'plus ' if parts else ''}{usd(summary.unfinished_usd)}"
        parts.append(f"{paid} for the answers of {plural(summary.unfinished, 'unfinished row')}")
    if parts and summary.simulated:
        parts.append("simulated, so nothing is paid")
    return "; ".join(parts) or None


def _unpriced(summary: Summary) -> list[str]:
    """The models without a price; of a summary that an older version wrote, one of them."""
    return sorted({*summary.unpriced_models, *filter(None, [summary.unpriced_model])})


def next_in_words(summary: Summary) -> list[str]:
    """Two lines: what the next command does, and the command; empty where there is none."""
    if summary.next_command is None:
        return []
    return [f"next step: {next_step(summary)}", f"next: {shell_command(summary.next_command)}"]


def next_step(summary: Summary) -> str:
    """What the next command does; empty where there is none."""
    if summary.next_command is None:
        return ""
    words = shlex.split(summary.next_command)
    failed = sum(summary.statuses.get(status, 0) for status in FAILED)
    if words[1:2] == ["show"]:
        return "look at a row that is not ok"
    left, options = summary.left - summary.left_out, {word.partition("=")[0] for word in words}
    is_part, sends_failed = not options.isdisjoint(PARTS), "--retry-failed" in options
    if is_part:
        left = min(left, summary.rows - summary.settled + summary.beyond_pilot)
    if left <= 0 and not sends_failed:
        is_rerun = "--rerun-changed" in options
        return (
            "send rows whose request changed again"
            if is_rerun
            else "finish the run; no row remains"
        )
    if left <= 0:  # some of the failed rows may be among those that are left out
        those = "failed rows that fit" if "--where" in options else plural(failed, "failed row")
        return f"send the {those} again"
    rows = "remaining rows" if is_part else f"the {plural(left, 'remaining row')}"
    failed_too = ", and the failed ones again" if sends_failed else ""
    return f"continue with {rows}{failed_too}"
