"""How a run ends: asked to stop, too many failed rows, and the one rule for how it ended.

Causes are collected while the run goes on and judged once, at its end. The strongest one says what
the run's state is, which exit code it has, and why; the order in which they came counts only among
causes of one kind.

    a disk that failed, a bug                    failed        1
    quota, key, budget, endpoint, time, ...      stopped       3
    signals                                      interrupted   128 + the signal's number
    none, and rows not asked for remain          limited       0, or 4 where rows are not ok
    none, and no row remains                     finished      0, or 4 where rows are not ok
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from batchrun.errors import (
    BatchrunError,
    ErrorKind,
    InputError,
    Interrupted,
    RunStopped,
    StopCause,
    StoreError,
)
from batchrun.formats.amounts import plural
from batchrun.job.sections import LimitsJob
from batchrun.records import SHORTFALLS, Failure, Judged, Outcome, RunRecord, Totals

FIRST_ROWS = 20  # that fail the same way stop the run
WINDOW_ROWS = 100  # ended rows over which a share is taken


# Such a row has an answer that can be read, and stops no run. An empty one has been paid for
# nothing, and many of them say that the settings or the server are wrong.
_HAVE_ANSWERS = frozenset(SHORTFALLS) - {ErrorKind.EMPTY_OUTPUT}
_NO_FAILURES = _HAVE_ANSWERS | {ErrorKind.INVALID_ROW}


def failure_of(outcome: Outcome) -> Failure | None:
    """Why the row has no answer or an empty one; null where it has one, or was never sent."""
    failure = outcome.failure
    if failure is None or failure.status == "invalid" or failure.kind in _HAVE_ANSWERS:
        return None
    return failure


class FirstRows:
    """Whether the first rows of a run, counted over resumes, all fail the same way.

    Where they did, so many more may fail that way in each later command, until one does not.
    """

    def __init__(self, earlier: Totals) -> None:
        kinds = earlier.error_kinds.items()
        failures = {kind: rows for kind, rows in kinds if kind not in _HAVE_ANSWERS}
        self._kinds, failed = set(failures), sum(failures.values())
        self._is_over = earlier.ok > 0 or failed < earlier.rows or len(self._kinds) > 1
        self._rows = failed if failed < FIRST_ROWS else 0

    def count(self, outcome: Outcome) -> str | None:
        """Why the run should stop, after this outcome; null where it should not."""
        if self._is_over or not outcome.attempts:
            return None
        failure = failure_of(outcome)
        self._rows += 1
        self._kinds.add("" if failure is None else failure.kind.value)
        if failure is None or len(self._kinds) > 1 or self._rows >= FIRST_ROWS:
            self._is_over = True
        if failure is None or len(self._kinds) > 1 or self._rows < FIRST_ROWS:
            return None
        return _all_failed_alike(failure.kind, failure.message)

    def look(
        self, rows: int, failed: Mapping[str, int], kind: ErrorKind, message: str
    ) -> str | None:
        """The same, of what workers have counted so far: `rows` that this command sent.

        `failed`: of these, by their kinds, as in `Totals`; the others are of the last that failed.
        """
        failures = {
            one: count for one, count in failed.items() if one not in _NO_FAILURES and count
        }
        kinds = self._kinds | failures.keys()
        if self._is_over or len(kinds) > 1 or sum(failures.values()) < rows:
            self._is_over = True
        if self._is_over or self._rows + rows < FIRST_ROWS:
            return None
        self._is_over = True
        return _all_failed_alike(kind, message)


def _all_failed_alike(kind: ErrorKind, message: str) -> str:
    is_answer = kind in SHORTFALLS  # sent again by name alone
    again = f"--retry-failed={kind}" if is_answer else "--retry-failed"
    return (
        f"the first {FIRST_ROWS} rows all failed the same way ({kind}): {message}; fix the cause, "
        f"then run again with {again}; if that changes the requests, with --rerun-changed"
    )


class TooManyFailures:
    """Whether more rows of this command failed than `limits.max_failures` allows."""

    def __init__(self, limits: LimitsJob) -> None:
        self._most = limits.max_failures
        self._share = limits.max_failed_share
        self._failed = 0
        self._window: deque[bool] = deque(maxlen=WINDOW_ROWS)
        self._looks: deque[tuple[int, int]] = deque([(0, 0)])  # rows, and those that failed

    def count(self, outcome: Outcome) -> str | None:
        """Why the run should stop, after this outcome; null where it should not."""
        if self._most is None or not outcome.attempts:
            return None
        failure = failure_of(outcome)
        self._failed += failure is not None
        if self._share is None:
            if failure is None or self._failed < int(self._most):
                return None
            what = f"{plural(self._failed, 'row')} failed"
        else:
            self._window.append(failure is not None)
            failed = sum(self._window) if failure is not None else 0
            if len(self._window) < WINDOW_ROWS or failed <= self._share * WINDOW_ROWS:
                return None
            what = f"{failed} of the last {WINDOW_ROWS} rows failed"
        assert failure is not None  # noqa: S101 - a row that did not fail never stops a run
        return self._in_words(what, failure.kind, failure.message)

    def look(self, rows: int, failed: int, kind: ErrorKind, message: str) -> str | None:
        """The same, of what workers have counted so far; the last failure was like that.

        A share is one of the last rows that were reported together, at least so many.
        """
        if self._most is None or not failed:
            return None
        if self._share is None:
            if failed < int(self._most):
                return None
            return self._in_words(f"{plural(failed, 'row')} failed", kind, message)
        looks = self._looks
        while len(looks) > 1 and rows - looks[1][0] >= WINDOW_ROWS:
            looks.popleft()
        recent, recent_failed = rows - looks[0][0], failed - looks[0][1]
        is_new = failed > looks[-1][1]
        looks.append((rows, failed))
        if not is_new or recent < WINDOW_ROWS or recent_failed <= self._share * recent:
            return None
        return self._in_words(f"{recent_failed} of the last {recent} rows failed", kind, message)

    def _in_words(self, what: str, kind: ErrorKind, message: str) -> str:
        return (
            f"{what} (limits.max_failures = {self._most}), the last with {kind}: {message}; fix "
            "the cause, or allow more with --max-failures, and run again"
        )


_ASKED = 130  # the exit code of a run that its caller asked to stop, as of one that Ctrl-C did


def time_is_up(limits: LimitsJob, down: str | None = None) -> RunStopped:
    """The cause of a run's end when `limits.stop_at` has come.

    `down`: the last words of an endpoint that is down by then.
    """
    why = f"; the endpoint was down by then: {down}" if down else ""
    return RunStopped(
        f"it is time to stop (--stop-at {limits.stop_at}); run again to continue{why}",
        StopCause.TIME,
    )


def rows_judged(before: RunRecord | None, stay: Totals, *, sends: bool) -> Judged:
    """The rows that a command does not judge again, of those that `stay` as they are.

    One that sends rows judges them, and with them those of commands that ended early before it.
    One that sends none judges again what the last one has judged.
    """
    if before is None or not sends:
        return Judged() if before is None else before.judged
    judged = Judged(stay.rows, stay.ok) if before.exit_code in (0, _NOT_OK) else before.judged
    rows = min(judged.rows, stay.rows)
    not_ok = min(judged.rows - judged.ok, stay.rows - stay.ok, rows)
    return Judged(rows, rows - not_ok)


def judge_rows(limits: LimitsJob, totals: Totals, judged: Judged) -> tuple[int, str | None]:
    """How many rows are not ok and not tolerated, and in words what `limits.tolerate` said.

    Null where there was nothing to tolerate. Where too many are not ok, all that are count.
    """
    not_ok = totals.rows - totals.ok
    if limits.tolerate is None or not not_ok:
        return not_ok, None
    rows = max(0, totals.rows - judged.rows)
    new = max(0, not_ok - (judged.rows - judged.ok))
    words = f"{new:,} of {plural(rows, 'row')} {'is' if new == 1 else 'are'} not ok"
    if limits.tolerates(new, rows):
        return 0, f"{words}, as --tolerate {limits.tolerate} allows"
    return not_ok, f"{words}, more than --tolerate {limits.tolerate} allows"


class StopSwitch:
    """Asks a run to stop: the first time what is in flight lands, the second time it is dropped.

    One switch serves one run. `ask` may be called from any thread, also before the run starts.
    """

    def __init__(self) -> None:
        self.asked: list[Interrupted] = []
        self._listener: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self, message: str = "asked to stop", exit_code: int = _ASKED) -> None:
        """`message` is the summary's, unless something stronger ends the run."""
        self.asked.append(Interrupted(message, exit_code))
        if self._listener is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._listener)

    def listen(self, listener: Callable[[], None]) -> None:
        """From now on `listener` is called, on the running loop, for each time it was asked."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        if self.asked:
            listener()

    @property
    def is_sending(self) -> bool:
        """Whether anything may be in flight."""
        return self._listener is not None

    def check(self, _rows: int = 0) -> None:
        """Raises `Interrupted` once asked: for work that is not sending."""
        if self.asked:
            raise self.asked[0]


_NOT_OK = 4
_STOPPED = 3
_FAILED = 1


class End(Struct, frozen=True):
    """How a run ended."""

    state: str  # finished, limited, stopped, interrupted, failed
    exit_code: int
    cause: BaseException | None = None  # the strongest; null where nothing ended the run early
    message: str | None = None


def end_of(causes: Iterable[BaseException], *, remaining: int, not_asked: int, not_ok: int) -> End:
    """How a run with these causes ended.

    `remaining`: rows of the input without an outcome; `not_asked`: of them, those that this
    command was not to send; `not_ok`: rows with an outcome that is not ok, as far as these are not
    tolerated.
    """
    if remaining <= not_asked:  # the last rows landed when no more would have been sent
        causes = [one for one in causes if not _is_time(one)]
    strongest = min(causes, key=_rank, default=None)
    if strongest is None and remaining > not_asked:
        missed = remaining - not_asked
        rows = "1 row has" if missed == 1 else f"{missed:,} rows have"
        strongest = BatchrunError(
            f"{rows} no outcome though nothing stopped the run: a bug of batchrun. What has "
            "arrived is stored, and the same command sends the other rows; please report this"
        )
    match strongest:
        case None:
            state = "limited" if remaining else "finished"
            return End(state, _NOT_OK if not_ok else 0)
        case RunStopped() | InputError():  # the input changed: the run can go on later
            return End("stopped", _STOPPED, strongest, str(strongest))
        case Interrupted(exit_code=exit_code):
            return End("interrupted", exit_code, strongest, str(strongest))
        case BatchrunError():
            return End("failed", _FAILED, strongest, str(strongest))
    return End("failed", _FAILED, strongest, bug_in_words(strongest))


def bug_in_words(error: BaseException) -> str:
    """What a user is told of an error that nobody foresaw."""
    return (
        f"a bug of batchrun ended the run ({type(error).__name__}: {error}). What has arrived is "
        "stored, and the same command continues; please report this"
    )


def _is_time(cause: BaseException) -> bool:
    return isinstance(cause, RunStopped) and cause.cause is StopCause.TIME


# The strongest first.
_STOPS = (
    StopCause.QUOTA,
    StopCause.KEY,
    StopCause.BUDGET,
    StopCause.ENDPOINT,
    StopCause.FAILURES,
    StopCause.TIME,
)


def _rank(cause: BaseException) -> tuple[int, int]:
    """The smaller, the stronger."""
    match cause:
        case StoreError():
            return 0, 0
        case RunStopped(cause=kind):
            return 2, _STOPS.index(kind)
        case InputError():
            return 2, len(_STOPS)
        case Interrupted(exit_code=exit_code):  # SIGTERM before SIGINT before SIGHUP
            return 3, -exit_code
    return 1, 0
