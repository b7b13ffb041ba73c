"""Counts outcomes, and says at any time how the run stands. Watchers pull a `Summary`."""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct

from batchrun.formats.amounts import usd
from batchrun.progress.bottleneck import Pulse, headroom, most_in_flight, most_per_s, paused_by
from batchrun.records import Outcome, Response, Totals

_A_FACTOR = 50.0  # buckets for each factor of e: each is two per cent wide
_LEAST_S = 1e-4
_MOST_S = 1e6
_BUCKETS = int(math.log(_MOST_S / _LEAST_S) * _A_FACTOR) + 1


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
            counts[int(log(within / _LEAST_S) * _A_FACTOR)] += 1
        self._count += len(latencies)

    def quantile(self, share: float) -> float | None:
        """Seconds that so large a share of all stayed within; null where there are none."""
        if not self._count:
            return None
        bucket = bisect_left(list(accumulate(self._counts)), share * self._count)
        return _LEAST_S * math.exp((bucket + 0.5) / _A_FACTOR)


_Mark = tuple[float, int, int, int]  # what was counted by when: time, rows, requests, tokens
_MARK_S = 0.25

_WINDOW_S = 30.0  # the rate is that of the last seconds


class Summary(Struct, frozen=True):
    """How a run stands: `live.json`, the final JSON, what the display shows."""

    run: str  # the run directory
    state: (
        str  # planning, running, stopping; finished, limited, stopped, interrupted, failed, killed
    )
    rows: int  # asked for: all of the source, or the first `--limit`
    left: int  # of the source, not settled
    ok: int
    not_ok: int
    truncated: int
    refused: int
    statuses: dict[str, int]
    error_kinds: dict[str, int]
    error_examples: dict[str, str]  # `error_kind` to the first message of it in this command
    in_flight: int
    retrying: int  # rows between two tries
    attempts: int  # of settled rows
    unknown_attempts: int  # of them, those whose cost is not known: it is in no sum
    retries: int  # of them, tries after a failure
    reasks: int  # of them, answers asked for once more
    hedges: int  # of them, second copies
    resent: int  # of them, first tries of rows that had an outcome
    more_tries: int  # beyond the first, of rows that are not settled yet
    tool_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    elapsed_s: float  # of this command
    rows_per_s: float  # over the last half minute; once ended, over the command
    requests_per_s: float  # the same
    tokens_per_s: float  # the same
    time_left_s: float | None
    most_in_flight: int | None = None  # what limits allow at the moment
    most_requests_per_s: float | None = None
    most_tokens_per_s: float | None = None
    p50_s: float | None = None  # latency of the answers of this command
    p99_s: float | None = None
    binds: str | None = None  # what holds the run up at the moment
    paused_by: str | None = None  # what stops all sending at the moment: cooldown, endpoint down
    limits: tuple[str, ...] = ()  # how each limit stands
    again: int = 0  # of those left, rows whose older outcome stands until they are settled again
    oldest: tuple[tuple[str, float], ...] = ()  # the last rows: id, seconds since the first send
    exit_code: int | None = None
    message: str | None = None  # why it stopped
    next_command: str | None = None
    simulated: bool = False  # nothing is paid
    cost_usd: float | None = None  # spent in the run directory so far; null where nothing is known
    projected_usd: float | None = None  # in all, at the mean cost of the rows so far
    cap_usd: float | None = None
    unpriced: int = 0  # rows with attempts of which no cost is known
    unpriced_model: str | None = None  # one of the models that have no price
    unknown_usd: float = 0.0  # under a cap: reserved for tries that never told what they cost
    reserved_usd: float = 0.0  # under a cap: for what is in flight
    source_rows: int = 0  # of the input
    unfinished: int = 0  # rows that have an answer which is to be asked for again, and no outcome
    unfinished_usd: float = 0.0  # what these have cost so far, in no other sum

    @property
    def settled(self) -> int:
        return self.ok + self.not_ok - self.again


class RunCounters:
    """What has been settled, in earlier commands and in this one."""

    def __init__(self, earlier: Totals, began_s: float, again: int = 0) -> None:
        """`again`: how many of the earlier rows are sent again by this command."""
        self.began_s = began_s
        self.again = again  # of these, those that are not yet
        self.settled_now = 0  # rows settled by this command
        self._totals = {
            name: getattr(earlier, name) for name in Totals.__struct_fields__ if name not in _MAPS
        }
        self._statuses = Counter(earlier.statuses)
        self._error_kinds = Counter(earlier.error_kinds)
        self._attempt_kinds = Counter(earlier.attempt_kinds)
        self._error_examples: dict[str, str] = {}
        self._sent_rows = earlier.rows - earlier.statuses.get("invalid", 0)
        self._latencies = Latencies()
        self._first: _Mark = (began_s, 0, self._requests(0), self._tokens())
        self._marks: deque[_Mark] = deque([self._first])

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Some at once: a sum over many costs each of them half of what one alone takes."""
        totals = self._totals
        totals["rows"] += len(outcomes)
        self.settled_now += len(outcomes)
        sent = [outcome for outcome in outcomes if outcome.attempts]
        self._sent_rows += len(sent)
        self._latencies.add([outcome.attempts[outcome.counted].latency_s for outcome in sent])
        attempts = [attempt for outcome in sent for attempt in outcome.attempts]
        totals["attempts"] += len(attempts)
        totals["unknown_attempts"] += sum([attempt.cost_usd is None for attempt in attempts])
        self._attempt_kinds.update([attempt.kind for attempt in attempts])
        costs = [outcome.cost_usd for outcome in outcomes if outcome.cost_usd is not None]
        if costs:
            totals["cost_usd"] = (totals["cost_usd"] or 0.0) + sum(costs)
        if len(costs) < len(outcomes):
            unpriced = [outcome for outcome in sent if outcome.is_unpriced]
            totals["unpriced"] += len(unpriced)
            models = [outcome.unpriced_model for outcome in unpriced]
            totals["unpriced_model"] = totals["unpriced_model"] or next(filter(None, models), None)
        results = [outcome.result for outcome in outcomes]
        self._statuses.update([result.status for result in results])
        self._count_answers([result for result in results if isinstance(result, Response)])
        for outcome in outcomes:
            failure = outcome.failure
            if failure is not None:
                self._error_kinds[failure.kind.value] += 1
                self._error_examples.setdefault(failure.kind.value, failure.message)

    def _count_answers(self, answers: Sequence[Response]) -> None:
        totals, usages = self._totals, [answer.usage for answer in answers]
        totals["ok"] += sum([answer.ok for answer in answers])
        totals["truncated"] += sum([answer.truncated for answer in answers])
        totals["refused"] += sum([answer.refusal is not None for answer in answers])
        totals["tool_calls"] += sum([len(answer.tool_calls) for answer in answers])
        totals["input_tokens"] += sum([usage.input_tokens or 0 for usage in usages])
        totals["cached_tokens"] += sum([usage.cached_tokens or 0 for usage in usages])
        totals["output_tokens"] += sum([usage.output_tokens or 0 for usage in usages])
        totals["reasoning_tokens"] += sum([usage.reasoning_tokens or 0 for usage in usages])
        totals["total_tokens"] += sum([usage.total_tokens or 0 for usage in usages])

    def take_out(self, replaced: Totals) -> None:
        """What the older outcome of a row that was sent again adds up to."""
        left = self.totals().without(replaced)
        self._totals = {name: getattr(left, name) for name in self._totals}
        self._statuses, self._error_kinds = Counter(left.statuses), Counter(left.error_kinds)
        self._attempt_kinds = Counter(left.attempt_kinds)
        self._sent_rows -= bool(replaced.attempts)
        self.again -= 1

    def left(self, rows: int) -> int:
        """How many of so many rows are still to be settled, or to be settled again."""
        return max(0, rows - int(self._totals["rows"])) + self.again

    def totals(self) -> Totals:
        return Totals(
            **self._totals,
            statuses=dict(self._statuses),
            error_kinds=dict(self._error_kinds),
            attempt_kinds=dict(self._attempt_kinds),
        )

    def summary(
        self,
        *,
        run: str,
        state: str,
        rows: int,
        now_s: float,
        pulse: Pulse | None = None,
        binds: str | None = None,
        exit_code: int | None = None,
        message: str | None = None,
        next_command: str | None = None,
        simulated: bool = False,
        unknown_usd: float = 0.0,
        reserved_usd: float = 0.0,
        cap_usd: float | None = None,
        source_rows: int | None = None,
        postponed: int = 0,
        unfinished: int = 0,
        unfinished_usd: float = 0.0,
    ) -> Summary:
        """`rows` will be settled once the command is done, of `source_rows` (null: of as many).

        `postponed`: rows whose outcome is that of another request, and which it does not send.
        """
        totals, pulse = self.totals(), pulse or Pulse()
        kinds = totals.attempt_kinds
        source_rows = rows if source_rows is None else source_rows
        to_come = self.left(rows)
        elapsed_s = now_s - self.began_s
        rate, requests_per_s, tokens_per_s = self._rates(
            now_s, pulse.retries, over=exit_code is not None
        )
        cost_usd = totals.cost_usd
        to_come_usd = cost_of_left(totals, to_come) if cost_usd is not None else None
        return Summary(
            run=run,
            state=state,
            rows=rows,
            left=self.left(source_rows) + postponed,
            ok=totals.ok,
            not_ok=totals.rows - totals.ok,
            again=self.again + postponed,
            truncated=totals.truncated,
            refused=totals.refused,
            statuses=totals.statuses,
            error_kinds=totals.error_kinds,
            error_examples=dict(self._error_examples),
            in_flight=pulse.in_flight,
            retrying=pulse.retrying,
            attempts=totals.attempts,
            unknown_attempts=totals.unknown_attempts,
            retries=kinds.get("retry", 0),
            reasks=kinds.get("reask", 0),
            hedges=kinds.get("hedge", 0),
            resent=max(0, kinds.get("first", 0) - self._sent_rows),
            more_tries=pulse.retries,
            tool_calls=totals.tool_calls,
            input_tokens=totals.input_tokens,
            cached_tokens=totals.cached_tokens,
            output_tokens=totals.output_tokens,
            reasoning_tokens=totals.reasoning_tokens,
            total_tokens=totals.total_tokens,
            elapsed_s=elapsed_s,
            rows_per_s=rate,
            requests_per_s=requests_per_s,
            tokens_per_s=tokens_per_s,
            most_in_flight=most_in_flight(pulse),
            most_requests_per_s=most_per_s(pulse, "requests"),
            most_tokens_per_s=most_per_s(pulse, "tokens"),
            p50_s=self._latencies.quantile(0.5),
            p99_s=self._latencies.quantile(0.99),
            time_left_s=to_come / rate if rate > 0 and exit_code is None else None,
            binds=binds,
            paused_by=paused_by(pulse),
            limits=tuple(headroom(pulse)),
            oldest=tuple(pulse.oldest),
            exit_code=exit_code,
            message=message,
            next_command=next_command,
            simulated=simulated,
            # Sums in another order differ in the last digits.
            cost_usd=None if cost_usd is None else round(cost_usd, 9),
            projected_usd=None
            if cost_usd is None or to_come_usd is None
            else round(cost_usd + to_come_usd, 9),
            cap_usd=cap_usd,
            unpriced=totals.unpriced,
            unpriced_model=totals.unpriced_model,
            unknown_usd=unknown_usd,
            reserved_usd=reserved_usd,
            source_rows=source_rows,
            unfinished=unfinished,
            unfinished_usd=round(unfinished_usd, 9),
        )

    def _rates(self, now_s: float, retries: int, *, over: bool) -> tuple[float, float, float]:
        """Rows, requests and tokens a second, over the last half minute or the whole command."""
        marks = self._marks
        now = (now_s, self.settled_now, self._requests(retries), self._tokens())
        if len(marks) == 1 and now[1:] == marks[0][1:]:
            marks[0] = now  # nothing has come yet: reading the input is no part of the rate
        elif now_s - marks[-1][0] >= _MARK_S:
            marks.append(now)
        while len(marks) > 2 and now_s - marks[1][0] > _WINDOW_S:
            marks.popleft()
        then = self._first if over else marks[0]
        passed_s = now_s - then[0]
        if passed_s <= 0:
            return 0.0, 0.0, 0.0
        rows, requests, tokens = (
            max(0, one - other) for one, other in zip(now[1:], then[1:], strict=True)
        )
        return rows / passed_s, requests / passed_s, tokens / passed_s

    def _requests(self, retries: int) -> int:
        """Those of settled rows, and the retries of others."""
        return int(self._totals["attempts"]) + retries

    def _tokens(self) -> int:
        return int(self._totals["input_tokens"]) + int(self._totals["output_tokens"])


_MAPS = ("statuses", "error_kinds", "attempt_kinds")


def cost_of_left(totals: Totals, left: int) -> float | None:
    """USD that so many more rows would cost at the mean of those so far; null where none is known.

    Rows whose cost is not known are left out of the mean.
    """
    known = totals.rows - totals.statuses.get("invalid", 0) - totals.unpriced
    if totals.cost_usd is None or known <= 0:
        return None
    return left * totals.cost_usd / known


def left_in_words(totals: Totals, left: int) -> str:
    """`1,234 rows are left; ...`, to follow the reason why a budget stopped a run."""
    rows = "1 row is left" if left == 1 else f"{left:,} rows are left"
    cost = cost_of_left(totals, left)
    if not cost:
        return rows
    return f"{rows}, about {usd(cost)} at the mean cost of the rows so far"
