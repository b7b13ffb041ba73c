"""How a run is doing: its outcomes counted, and at any time a `Summary` of it."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from msgspec import Struct

from batchrun.formats.amounts import plural, usd
from batchrun.progress.bottleneck import Activity, limits_in_words, lowest_limit, paused_by
from batchrun.records import Outcome, Totals
from batchrun.store.complete_rows import TotalsBuilder

_MARK_S = 0.25
_WINDOW_S = 30.0  # the rate is that of the last seconds
_USD_DIGITS = 9  # sums in another order differ in the last digits

_PER_FACTOR = 50.0  # buckets for each factor of e: each is two per cent wide
_LEAST_S, _MOST_S = 1e-4, 1e6
_BUCKETS = int(math.log(_MOST_S / _LEAST_S) * _PER_FACTOR) + 1


SentTimes = tuple[int, int]  # the first send and the last end of an attempt, µs since 1970


class WorkerState(Struct, frozen=True):
    """One of the processes that send the requests of a run."""

    id: str  # as the files that it writes begin: w1, w2, ...
    host: str  # empty before it is known, as the process is 0
    pid: int
    state: str  # starting, running, silent, draining, lost, adopted, ended
    completed: int = 0  # rows, of this command
    in_flight: int = 0
    waiting: int = 0  # requests that wait for a limit
    share: float | None = None  # of the limits that workers have together; null: none is shared
    silent_s: float = 0.0  # since it was heard of
    unknown_usd: float = 0.0  # under a cap: reserved for attempts that reported no usage, ...
    reserved_usd: float = 0.0  # ... for what is in flight, and for what else it may start


class Summary(Struct, frozen=True):
    """`live.json`, the final JSON, and what the display shows."""

    run: str  # the run directory
    # planning, running, stopping; finished, limited, stopped, interrupted, failed, killed
    state: str
    rows: int  # asked for: all of the source, or the first `--limit`; complete ones among them
    left: int  # of the source, remaining
    ok: int
    not_ok: int
    truncated: int
    refused: int
    statuses: dict[str, int]
    error_kinds: dict[str, int]
    error_examples: dict[str, str]  # `error_kind` to the first message of it in this command
    in_flight: int
    retrying: int  # rows that wait for a retry
    attempts: int  # of complete rows, as the five below
    unknown_attempts: int  # those whose cost is not known: it is in no sum
    retries: int  # those after a failure
    reasks: int  # those that asked for an answer once more
    hedges: int  # second copies
    resent: int  # first attempts of rows that had an outcome
    more_tries: int  # beyond the first, of rows that are not complete
    tool_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    elapsed_s: float  # of this command
    rows_per_s: float  # over the last half minute; once ended, over `sent_s`
    requests_per_s: float  # the same
    tokens_per_s: float  # the same
    time_left_s: float | None
    most_in_flight: int | None = None  # what limits allow at the moment
    most_requests_per_s: float | None = None
    most_tokens_per_s: float | None = None
    p50_s: float | None = None  # latency of the answers of this command
    p99_s: float | None = None
    binds: str | None = None  # what limits the run at the moment
    paused_by: str | None = None  # what stops all sending at the moment: cooldown, endpoint down
    limits: tuple[str, ...] = ()  # each limit in words
    again: int = (
        0  # of those left, rows with an older outcome that counts until the new one is there
    )
    oldest: tuple[tuple[str, float], ...] = ()  # the last rows: id, seconds since the first send
    exit_code: int | None = None
    message: str | None = None  # why it stopped
    next_command: str | None = None
    simulated: bool = False  # nothing is paid
    cost_usd: float | None = None  # spent in the run directory so far; null where none is known
    projected_usd: float | None = None  # in all, at the mean cost of the rows so far
    cap_usd: float | None = None
    unpriced: int = 0  # rows with attempts of which no cost is known
    unpriced_model: str | None = None  # one of the models that have no price
    unknown_usd: float = 0.0  # under a cap: reserved for attempts that reported no usage
    reserved_usd: float = 0.0  # under a cap: for what is in flight, and what workers may start
    source_rows: int = 0  # of the input
    unfinished: int = 0  # rows without an outcome whose answer is to be asked for again
    unfinished_usd: float = 0.0  # what these have cost so far, in no other sum
    warnings: tuple[str, ...] = ()  # of the plan of this command
    samples: int = 1  # of each row and variant
    variants: tuple[str, ...] = ()  # names; empty where none is declared
    workers: tuple[WorkerState, ...] = ()  # empty where the run's own process sends all
    left_out: int = 0  # of those left, rows that `--where` leaves out
    unpriced_models: tuple[str, ...] = ()  # all that have no price
    sent_s: float = 0.0  # from the first request of this command to its last answer
    completed: int = 0  # rows, by this command
    beyond_pilot: int = 0  # rows asked for that a pilot leaves to the command after it

    @property
    def settled(self) -> int:
        """Complete rows."""
        return self.ok + self.not_ok - self.again

    @property
    def not_asked(self) -> int:
        """Rows of the input that this command leaves to others."""
        return max(0, self.source_rows - self.rows)


_IN_BOTH = set(Totals.__struct_fields__) & set(Summary.__struct_fields__) - {"rows", "cost_usd"}
_Mark = tuple[float, int, int, int]  # what was counted by when: time, rows, requests, tokens


class RunCounters:
    """Counts the outcomes of earlier commands and of this one."""

    def __init__(
        self, earlier: Totals, began_s: float, again: int = 0, *, began_at: int = 0
    ) -> None:
        """`again`: earlier rows that this command sends again; `began_at`: as for `SentSpan`."""
        self.began_s = began_s
        self.again = again  # of these, those that are not complete yet
        self._sums = TotalsBuilder(earlier)
        self._completed = 0  # rows, by this command
        self._sent_rows = earlier.rows - earlier.statuses.get("invalid", 0)
        self._latencies = Latencies()
        self._sent = SentSpan(began_at)
        self._told_s: tuple[float, float] | None = None  # latencies, where workers measure them
        self._first = self._mark(began_s, earlier, 0)
        self._marks: deque[_Mark] = deque([self._first])

    def count(self, outcomes: Sequence[Outcome]) -> None:
        self._sums.add(outcomes)
        self._completed += len(outcomes)
        sent = [outcome for outcome in outcomes if outcome.attempts]
        self._sent_rows += len(sent)
        self._latencies.add([outcome.attempts[outcome.counted].latency_s for outcome in sent])
        self._sent.add(sent)

    def take_out(self, replaced: Totals) -> None:
        """Subtracts the older outcome of a row that was sent again."""
        self._sums.set_to(self.totals().without(replaced))
        self._sent_rows -= bool(replaced.attempts)
        self.again -= 1

    def follow(
        self,
        totals: Totals,
        *,
        completed: int,
        again: int,
        examples: Mapping[str, str],
        latencies_s: tuple[float, float] | None = None,
        spans: Iterable[SentTimes | None] = (),
    ) -> None:
        """Takes over what workers have counted, where these store the outcomes.

        `totals`: of all commands; `completed`: rows, by this one; `again`: as in the constructor,
        of now; `examples`: `error_kind` to a message; `latencies_s`: median and 99th percentile;
        `spans`: when each worker has sent.
        """
        self._sums.set_to(totals)
        self._sums.error_examples.update(examples)
        self._completed, self.again = completed, again
        self._sent_rows = totals.rows - totals.statuses.get("invalid", 0)
        self._told_s = latencies_s
        for span in spans:
            self._sent.widen(span)

    def remaining(self, rows: int) -> int:
        """How many of so many rows have no outcome yet, or are being sent again."""
        return max(0, rows - self._sums.sums["rows"]) + self.again

    def totals(self) -> Totals:
        return self._sums.totals()

    def summary(
        self,
        *,
        rows: int,
        now_s: float,
        activity: Activity | None = None,
        exit_code: int | None = None,
        source_rows: int | None = None,
        postponed: int = 0,
        **facts: Any,
    ) -> Summary:
        """`rows` will be complete once the command is done, of `source_rows` (None: of as many).

        `postponed`: rows whose outcome is that of another request, and which it does not send.
        `facts`: fields of the summary that are not counted here.
        """
        totals, activity = self.totals(), activity or Activity()
        kinds, cost_usd, remaining = totals.attempt_kinds, totals.cost_usd, self.remaining(rows)
        source_rows = rows if source_rows is None else source_rows
        now = self._mark(now_s, totals, activity.retries)
        rows_per_s, requests_per_s, tokens_per_s = self._rates(now, is_over=exit_code is not None)
        most_in_flight = lowest_limit(activity.limits, "in flight")
        p50_s, p99_s = self._told_s or map(self._latencies.quantile, (0.5, 0.99))
        more_usd = cost_of_remaining(totals, remaining)
        return Summary(
            **{name: getattr(totals, name) for name in _IN_BOTH},
            rows=rows - postponed,
            source_rows=source_rows,
            left=self.remaining(source_rows) + postponed,
            not_ok=totals.rows - totals.ok,
            again=self.again + postponed,
            error_examples=dict(self._sums.error_examples),
            in_flight=activity.in_flight,
            retrying=activity.retrying,
            retries=kinds.get("retry", 0),
            reasks=kinds.get("reask", 0),
            hedges=kinds.get("hedge", 0),
            resent=max(0, kinds.get("first", 0) - self._sent_rows),
            more_tries=activity.retries,
            elapsed_s=now_s - self.began_s,
            sent_s=self._sent.seconds,
            completed=self._completed,
            rows_per_s=rows_per_s,
            requests_per_s=requests_per_s,
            tokens_per_s=tokens_per_s,
            most_in_flight=None if most_in_flight is None else int(most_in_flight),
            most_requests_per_s=lowest_limit(activity.limits, "requests"),
            most_tokens_per_s=lowest_limit(activity.limits, "tokens"),
            p50_s=p50_s,
            p99_s=p99_s,
            time_left_s=remaining / rows_per_s if rows_per_s > 0 and exit_code is None else None,
            paused_by=paused_by(activity),
            limits=limits_in_words(activity),
            oldest=tuple(activity.oldest),
            exit_code=exit_code,
            cost_usd=None if cost_usd is None else round(cost_usd, _USD_DIGITS),
            projected_usd=None
            if more_usd is None
            else round((cost_usd or 0.0) + more_usd, _USD_DIGITS),
            **facts,
        )

    def _mark(self, at_s: float, totals: Totals, retries: int) -> _Mark:
        """`retries`: of rows that are not complete."""
        tokens = totals.input_tokens + totals.output_tokens
        return at_s, self._completed, totals.attempts + retries, tokens

    def _rates(self, now: _Mark, *, is_over: bool) -> tuple[float, float, float]:
        """Rows, requests and tokens a second, over the last half minute.

        Of a command that is over: from its first request to its last answer.
        """
        marks, now_s = self._marks, now[0]
        if len(marks) == 1 and now[1:] == marks[0][1:]:
            marks[0] = now  # reading the input, before the first outcome, is no part of the rate
        elif now_s - marks[-1][0] >= _MARK_S:
            marks.append(now)
        while len(marks) > 2 and now_s - marks[1][0] > _WINDOW_S:
            marks.popleft()
        then = self._first if is_over else marks[0]
        passed_s = self._sent.seconds if is_over else now_s - then[0]
        if passed_s <= 0:
            return 0.0, 0.0, 0.0
        rows, requests, tokens = (
            max(0, one - other) / passed_s for one, other in zip(now[1:], then[1:], strict=True)
        )
        return rows, requests, tokens


def cost_of_remaining(totals: Totals, rows: int) -> float | None:
    """USD that so many more rows would cost at the mean of those so far; None without a mean.

    Rows whose cost is not known are left out of the mean.
    """
    known = totals.rows - totals.statuses.get("invalid", 0) - totals.unpriced
    if totals.cost_usd is None or known <= 0:
        return None
    return rows * totals.cost_usd / known


def remaining_in_words(totals: Totals, rows: int) -> str:
    """`1,234 rows remain, ...`, to follow the reason why a budget stopped a run."""
    cost = cost_of_remaining(totals, rows)
    words = f"{plural(rows, 'row')} {'remains' if rows == 1 else 'remain'}"
    return f"{words}, about {usd(cost)} at the mean cost of the rows so far" if cost else words


class SentSpan:
    """From the first request that a command sent to the last answer that it received."""

    def __init__(self, began_at: int) -> None:
        """`began_at`: when the command began; what was sent before is of earlier ones."""
        self._began_at = began_at
        self.times: SentTimes | None = None  # null: nothing was sent

    def add(self, sent: Sequence[Outcome]) -> None:
        attempts = [attempt for outcome in sent for attempt in outcome.attempts]
        starts = [attempt.started_at for attempt in attempts]
        if starts and min(starts) < self._began_at:  # of rows that are sent again
            attempts = [one for one in attempts if one.started_at >= self._began_at]
            starts = [attempt.started_at for attempt in attempts]
        if starts:
            last_at = max([one.started_at + one.latency_s * 1e6 for one in attempts])
            self.widen((min(starts), round(last_at)))

    def widen(self, times: SentTimes | None) -> None:
        """By what others have sent."""
        if self.times is None or times is None:
            self.times = self.times or times
        else:
            self.times = min(self.times[0], times[0]), max(self.times[1], times[1])

    @property
    def seconds(self) -> float:
        return 0.0 if self.times is None else (self.times[1] - self.times[0]) / 1e6


class Latencies:
    """Counts of latencies by their logarithm."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._count = 0

    def add(self, latencies: Sequence[float]) -> None:
        """So many more, in seconds."""
        counts, log = self._counts, math.log
        for seconds in latencies:
            within = _LEAST_S if seconds < _LEAST_S else min(seconds, _MOST_S)
            counts[int(log(within / _LEAST_S) * _PER_FACTOR)] += 1
        self._count += len(latencies)

    def quantile(self, share: float) -> float | None:
        """Seconds that so large a share of all stayed within; None where there are none."""
        if not self._count:
            return None
        bucket = bisect_left(list(accumulate(self._counts)), share * self._count)
        return _LEAST_S * math.exp((bucket + 0.5) / _PER_FACTOR)
