"""Counts what a worker has stored since it began; totals, so that any report may be lost."""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from batchrun.executors.messages import FAILURES, FailedRow
from batchrun.progress.summary import Latencies, SentSpan
from batchrun.records import Outcome, Totals
from batchrun.runner.ending import failure_of
from batchrun.store.complete_rows import TotalsBuilder

T = TypeVar("T")


class Unheard(Generic[T]):
    """Items that are in each report until the driver has one of these reports."""

    def __init__(self, most: int | None = None) -> None:
        """`most`: older items beyond it are dropped."""
        self._most = most
        self._new: list[T] = []
        self._told: list[tuple[int, T]] = []  # with the number of the first report that had it

    def add(self, one: T) -> None:
        self._new.append(one)
        if self._most is not None:
            del self._new[: -self._most]

    def tell(self, number: int) -> tuple[T, ...]:
        """The items for the report with this number."""
        self._told += [(number, one) for one in self._new]
        self._new = []
        if self._most is not None:
            del self._told[: -self._most]
        return tuple(one for _, one in self._told)

    def heard(self, number: int) -> None:
        """Notes that the driver has this report."""
        self._told = [(first, one) for first, one in self._told if first > number]


class WorkerCounts:
    """Counts outcomes once they are stored."""

    def __init__(self, on_stored: Callable[[Sequence[Outcome]], None]) -> None:
        self.replaced = Totals()
        self.sent_rows = self.failed_rows = 0
        self.failures = Unheard[FailedRow](FAILURES)
        self.latencies = Latencies()
        self.sent = SentSpan(time.time_ns() // 1000)
        self._sums = TotalsBuilder()
        self._on_stored = on_stored

    def count(self, outcomes: Sequence[Outcome]) -> None:
        self._sums.add(outcomes)
        sent = [outcome for outcome in outcomes if outcome.attempts]
        self.sent_rows += len(sent)
        self.latencies.add([outcome.attempts[outcome.counted].latency_s for outcome in sent])
        self.sent.add(sent)
        for outcome in sent:
            if (failure := failure_of(outcome)) is not None:
                self.failed_rows += 1
                row, kind = outcome.request.row, failure.kind
                self.failures.add(FailedRow(row, kind, failure.message, failure.status))
        self._on_stored(outcomes)

    def take_out(self, replaced: Totals) -> None:
        """Counts older outcomes that new ones have replaced."""
        self.replaced = self.replaced.plus(replaced)

    def totals(self) -> Totals:
        return self._sums.totals()
