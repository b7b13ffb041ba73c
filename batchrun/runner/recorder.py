"""The last steps of a row: into the run directory, then counted.

What a failing disk does not take is held in memory, and written if it takes it again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.formats.amounts import plural
from batchrun.records import (
    Answered,
    Attempt,
    Outcome,
    Request,
    RowKey,
    Totals,
    UnreadableBody,
)
from batchrun.runner.resume import EarlierOutcomes, after_attempts
from batchrun.store.unfinished import UnfinishedRows
from batchrun.store.unreadable import UnreadableBodies

DISK_PATIENCE_S = 60.0  # for a disk that does not take what has arrived
_DIGITS = 12  # of dollars: what is taken off again leaves nothing


class OutcomeStore(Protocol):
    """Where outcomes go: a run directory, in the hands of a command or of a worker."""

    unfinished: UnfinishedRows
    unreadable: UnreadableBodies

    def store(self, outcome: Outcome, *, anyway: bool = False) -> None: ...
    def store_some(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int: ...


class Counters(Protocol):
    """What counts the outcomes that are stored."""

    def count(self, outcomes: Sequence[Outcome], /) -> None: ...
    def take_out(self, replaced: Totals, /) -> None:
        """The older outcome of one that was counted is replaced by it."""


class Recorder:
    """Stores a run's outcomes, and what is known of rows that have none yet.

    What a disk does not take is held, and `on_failure` is told.
    """

    def __init__(
        self,
        run_dir: OutcomeStore,
        counters: Counters,
        earlier: EarlierOutcomes,
        base_url: Callable[[str | None], str],
        on_failure: Callable[[StoreError], None],
    ) -> None:
        """`base_url`: where requests of a variant go."""
        self._run_dir, self._counters, self._earlier = run_dir, counters, earlier
        self._base_url, self._on_failure = base_url, on_failure
        # Attempts of an earlier command at a request that the row does not make any more.
        self._abandoned: dict[RowKey, tuple[Attempt, ...]] = {}
        self._held: deque[Outcome] = deque()  # what the disk did not take
        self._answered_held: deque[Answered] = deque()  # the same
        self._begun_held: dict[RowKey, tuple[Request, str]] = {}  # the same
        self._unreadable_held: deque[UnreadableBody] = deque()  # the same
        self._open_usd = 0.0  # known cost of attempts of rows that have no outcome
        self.write_s = 0.0  # spent in writing

    def answered(self, request: Request) -> Answered | None:
        """The answer that an earlier command was to ask for again. Raises `StoreError`."""
        answered = self._run_dir.unfinished.answered(request.key)
        if answered is not None and answered.outcome.request.hash != request.hash:
            self._abandoned[request.key] = answered.outcome.attempts
            return None
        return answered

    def ask_again(self, answered: Answered) -> None:
        """The answer survives a kill when this returns, or it is held and the run stops."""
        if before := self._abandoned.get(answered.outcome.request.key):
            answered = replace(answered, outcome=after_attempts(answered.outcome, before))
        if self._is_holding:
            self._answered_held.append(answered)
            return
        try:
            self._run_dir.unfinished.record(answered)
        except StoreError as error:
            self._answered_held.append(answered)
            self._on_failure(error)

    def store_unreadable(self, body: UnreadableBody) -> None:
        """The body survives a kill when this returns, or it is held and the run stops."""
        try:
            self._run_dir.unreadable.add(body)
        except StoreError as error:
            self._unreadable_held.append(body)
            self._on_failure(error)

    def add_spent(self, dollars: float) -> None:
        """So much more (or less) was spent on attempts that are not on disk."""
        self._open_usd = round(self._open_usd + dollars, _DIGITS)

    async def begin(self, request: Request, response_id: str) -> None:
        """A background response has begun: on disk before it is waited for, or held."""
        try:
            await self._begin(request, response_id)
        except StoreError as error:  # it is paid for: it is waited for as the others are
            self._begun_held[request.key] = request, response_id
            self._on_failure(error)

    async def _begin(self, request: Request, response_id: str) -> None:
        base_url = self._base_url(request.variant)
        await asyncio.to_thread(self._run_dir.unfinished.begin, request, base_url, response_id)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """They survive a kill when this returns, but for what the disk refuses."""
        if self._earlier or self._abandoned:
            outcomes = [self._after_earlier(outcome) for outcome in outcomes]
        for outcome in outcomes if self._begun_held else ():
            self._begun_held.pop(outcome.request.key, None)
        if self._held:
            self._held.extend(outcomes)
            return
        began_s = time.perf_counter()
        stored = 0
        try:
            while stored < len(outcomes):
                stored += self._run_dir.store_some(outcomes[stored:])
        except StoreError as error:
            self._held.extend(outcomes[stored:])
            self._on_failure(error)
        finally:
            self.write_s += time.perf_counter() - began_s
            self._count(outcomes[:stored])

    def _after_earlier(self, outcome: Outcome) -> Outcome:
        if attempts := self._abandoned.pop(outcome.request.key, ()):
            outcome = after_attempts(outcome, attempts)
        return self._earlier.join(outcome)

    async def write_held(self, is_hurried: Callable[[], bool], tell: Callable[[str], None]) -> str:
        """Writes what is held, if the disk takes it within a minute; in words whether it did."""
        until_s = time.monotonic() + DISK_PATIENCE_S
        has_held = bool(self._held or self._answered_held or self._unreadable_held)
        while self._is_holding:
            try:
                await self._write_one()
            except StoreError as error:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or is_hurried():
                    return f" ({self.held_in_words} that had arrived could not be stored)"
                tell(f"{error}. Held for {left_s:.0f} s more: {self.held_in_words}")
                await asyncio.sleep(min(1.0, left_s))
        return " (all answers that had arrived are stored)" if has_held else ""

    async def _write_one(self) -> None:
        """Of what is held, so that it is not held any more. Raises `StoreError`."""
        if self._held:
            self._run_dir.store(self._held[0], anyway=True)
            self._count((self._held.popleft(),))
        elif self._answered_held:
            self._run_dir.unfinished.record(self._answered_held[0])
            self._answered_held.popleft()
        elif self._unreadable_held:
            self._run_dir.unreadable.add(self._unreadable_held[0])
            self._unreadable_held.popleft()
        else:
            key, begun = next(iter(self._begun_held.items()))
            await self._begin(*begun)
            del self._begun_held[key]

    @property
    def held_in_words(self) -> str:
        """`3 answers`, `1 answer, 2 ids of background responses`; empty if nothing is held."""
        words = []
        invalid = sum(not one.attempts for one in self._held)  # nothing was sent for these rows
        if answers := len(self._held) - invalid + len(self._answered_held):
            words.append(plural(answers, "answer"))
        if invalid:
            words.append(f"{plural(invalid, 'note')} of invalid rows")
        if bodies := len(self._unreadable_held):
            words.append(plural(bodies, "unreadable body", "unreadable bodies"))
        if begun := len(self._begun_held):
            words.append(f"{plural(begun, 'id')} of background responses")
        return ", ".join(words)

    @property
    def unstored_usd(self) -> float:
        """What is known to be spent on answers that are held, and on rows without an outcome."""
        held = (*self._held, *(one.outcome for one in self._answered_held))
        return sum(one.cost_usd or 0.0 for one in held) + self._open_usd

    @property
    def _is_holding(self) -> bool:
        """Whether there is anything that the disk did not take."""
        held = (self._held, self._answered_held, self._begun_held, self._unreadable_held)
        return any(held)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        if self._earlier:
            for outcome in outcomes:
                if (totals := self._earlier.replaced(outcome)) is not None:
                    self._counters.take_out(totals)
        self._counters.count(outcomes)
