"""Counts outcomes, and says at any time how the run stands. Watchers pull a `Summary`."""

import shlex
from collections import Counter, deque
from pathlib import Path

from msgspec import Struct

from batchrun.records import Failure, Outcome, Response, Totals

_WINDOW_S = 30.0  # the rate is that of the last seconds


class Summary(Struct, frozen=True):
    """How a run stands: `live.json`, the final JSON, what the display shows."""

    run: str  # the run directory
    state: str  # planning, running, stopping, finished, stopped, interrupted, failed
    rows: int  # asked for: all of the source, or the first `--limit`
    left: int  # of them, not settled
    ok: int
    not_ok: int
    truncated: int
    refused: int
    statuses: dict[str, int]
    error_kinds: dict[str, int]
    error_examples: dict[str, str]  # `error_kind` to the first message of it in this command
    in_flight: int
    retrying: int  # rows between two tries
    attempts: int
    retries: int  # attempts beyond the first of each row
    tool_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    elapsed_s: float  # of this command
    rows_per_s: float  # over the last half minute; once ended, over the command
    time_left_s: float | None
    exit_code: int | None = None
    message: str | None = None  # why it stopped
    next_command: str | None = None

    @property
    def settled(self) -> int:
        return self.ok + self.not_ok


class Tally:
    """What has been settled, in earlier commands and in this one."""

    def __init__(self, earlier: Totals, began_s: float) -> None:
        self.began_s = began_s
        self.settled_now = 0  # rows settled by this command
        self._totals = {
            name: getattr(earlier, name) for name in Totals.__struct_fields__ if name not in _MAPS
        }
        self._statuses = Counter(earlier.statuses)
        self._error_kinds = Counter(earlier.error_kinds)
        self._error_examples: dict[str, str] = {}
        self._sent_rows = earlier.rows - earlier.statuses.get("invalid", 0)
        self._marks: deque[tuple[float, int]] = deque([(began_s, 0)])

    def count(self, outcome: Outcome) -> None:
        totals = self._totals
        totals["rows"] += 1
        totals["ok"] += outcome.ok
        totals["attempts"] += len(outcome.attempts)
        self.settled_now += 1
        self._sent_rows += bool(outcome.attempts)
        match outcome.result:
            case Failure(kind=kind, message=message, status=status):
                self._statuses[status] += 1
                self._count_error(kind.value, message)
            case Response() as response:
                self._statuses[response.status] += 1
                if response.failure is not None:
                    self._count_error(response.failure.kind.value, response.failure.message)
                totals["truncated"] += response.truncated
                totals["refused"] += response.refusal is not None
                totals["tool_calls"] += len(response.tool_calls)
                for name in _TOKENS:
                    totals[name] += getattr(response.usage, name) or 0

    def _count_error(self, kind: str, message: str) -> None:
        self._error_kinds[kind] += 1
        self._error_examples.setdefault(kind, message)

    def totals(self) -> Totals:
        return Totals(
            **self._totals, statuses=dict(self._statuses), error_kinds=dict(self._error_kinds)
        )

    def summary(
        self,
        *,
        run: str,
        state: str,
        rows: int,
        now_s: float,
        in_flight: int = 0,
        retrying: int = 0,
        exit_code: int | None = None,
        message: str | None = None,
        next_command: str | None = None,
    ) -> Summary:
        totals = self.totals()
        left = max(0, rows - totals.rows)
        elapsed_s = now_s - self.began_s
        rate = self._rate(now_s, over=exit_code is not None)
        return Summary(
            run=run,
            state=state,
            rows=rows,
            left=left,
            ok=totals.ok,
            not_ok=totals.rows - totals.ok,
            truncated=totals.truncated,
            refused=totals.refused,
            statuses=totals.statuses,
            error_kinds=totals.error_kinds,
            error_examples=dict(self._error_examples),
            in_flight=in_flight,
            retrying=retrying,
            attempts=totals.attempts,
            retries=totals.attempts - self._sent_rows,
            tool_calls=totals.tool_calls,
            input_tokens=totals.input_tokens,
            cached_tokens=totals.cached_tokens,
            output_tokens=totals.output_tokens,
            reasoning_tokens=totals.reasoning_tokens,
            total_tokens=totals.total_tokens,
            elapsed_s=elapsed_s,
            rows_per_s=rate,
            time_left_s=left / rate if rate > 0 and exit_code is None else None,
            exit_code=exit_code,
            message=message,
            next_command=next_command,
        )

    def _rate(self, now_s: float, *, over: bool) -> float:
        """Rows a second, over the last half minute or over the whole command."""
        marks = self._marks
        if now_s - marks[-1][0] >= 0.25:
            marks.append((now_s, self.settled_now))
        while len(marks) > 2 and now_s - marks[1][0] > _WINDOW_S:
            marks.popleft()
        then_s, settled = (self.began_s, 0) if over else marks[0]
        return (self.settled_now - settled) / (now_s - then_s) if now_s > then_s else 0.0


_MAPS = ("statuses", "error_kinds")
_TOKENS = (
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)


def next_command(
    command: str | None, path: Path, exit_code: int, example_id: str | None
) -> str | None:
    """The command that leads on from an end; null where all is well or nothing is known."""
    if exit_code == 4:
        shown = "ID" if example_id is None else shlex.quote(example_id)
        return f"batchrun show {shlex.quote(str(path))} {shown}"
    return command if exit_code else None
