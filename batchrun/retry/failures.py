"""Whether so many rows fail that the run should stop. No I/O."""

from collections import deque

from batchrun.job.sections import LimitsJob
from batchrun.records import Failure, Outcome, Totals

FIRST_ROWS = 20  # that fail the same way stop the run
WINDOW_ROWS = 100  # ended rows over which a share is taken


def failure_of(outcome: Outcome) -> Failure | None:
    """Why the row has no answer; null where it has one, or was never sent."""
    failure = outcome.failure
    return None if failure is not None and failure.status == "invalid" else failure


class FirstRows:
    """Whether the first rows of a run, counted over resumes, all fail the same way.

    Where they did, so many more may fail that way in each later command, until one does not.
    """

    def __init__(self, earlier: Totals) -> None:
        self._kinds = set(earlier.error_kinds)
        failed = sum(earlier.error_kinds.values())
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
        return (
            f"the first {FIRST_ROWS} rows all failed the same way ({failure.kind}): "
            f"{failure.message}; fix the cause and run again with --retry-failed; where the "
            "request itself was fixed, with --rerun-changed"
        )


class TooManyFailures:
    """Whether more rows of this command failed than `limits.max_failures` allows."""

    def __init__(self, limits: LimitsJob) -> None:
        self._most = limits.max_failures
        self._share = limits.max_failed_share
        self._failed = 0
        self._window: deque[bool] = deque(maxlen=WINDOW_ROWS)

    def count(self, outcome: Outcome) -> str | None:
        """Why the run should stop, after this outcome; null where it should not."""
        if self._most is None or not outcome.attempts:
            return None
        failure = failure_of(outcome)
        self._failed += failure is not None
        if self._share is None:
            if failure is None or self._failed < int(self._most):
                return None
            what = f"{self._failed:,} rows failed"
        else:
            self._window.append(failure is not None)
            failed = sum(self._window) if failure is not None else 0
            if len(self._window) < WINDOW_ROWS or failed <= self._share * WINDOW_ROWS:
                return None
            what = f"{failed} of the last {WINDOW_ROWS} rows failed"
        assert failure is not None  # noqa: S101 - a row that did not fail never stops a run
        return (
            f"{what} (limits.max_failures = {self._most}), the last with {failure.kind}: "
            f"{failure.message}; fix the cause, or allow more with --max-failures, and run again"
        )
