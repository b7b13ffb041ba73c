"""The last steps of a row: into the run directory, then counted.

What a failing disk does not take is held in memory, and written if it takes it again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.formats.json_text import valid_text
from batchrun.progress.summary import RunCounters
from batchrun.records import Answered, Attempt, BadRow, Earlier, Outcome, Request, RowKey
from batchrun.runner.resume import Resumed, after_attempts, with_earlier
from batchrun.store.complete_rows import EarlierRows
from batchrun.store.run_dir import RunDir

DISK_PATIENCE_S = 60.0  # for a disk that does not take what has arrived
_ROWS_AT_ONCE = 64  # whose older outcomes are read together


class Recorder:
    """Keeps a run's outcomes; one that replaces an older outcome takes its attempts along.

    What a disk does not take is held, and `on_failure` is told.
    """

    def __init__(
        self,
        run_dir: RunDir,
        tally: RunCounters,
        resumed: Resumed,
        endpoint: str,
        on_failure: Callable[[StoreError], None],
    ) -> None:
        self._run_dir, self._tally, self._resumed = run_dir, tally, resumed
        self._endpoint, self._on_failure = endpoint, on_failure
        self._earlier: dict[int, Earlier] = {}  # by row: of those read and sent again
        # By row: attempts of an earlier command at a request that the row does not make any more.
        self._abandoned: dict[int, tuple[Attempt, ...]] = {}
        self._held: deque[Outcome] = deque()  # what the disk did not take
        self._answered_held: deque[Answered] = deque()  # the same
        self._begun_held: dict[RowKey, tuple[Request, str]] = {}  # the same
        self.write_s = 0.0  # spent in writing

    def answered(self, request: Request) -> Answered | None:
        """The answer that an earlier command was to ask for again. Raises `StoreError`."""
        answered = self._run_dir.unfinished.answered(request.key)
        if answered is not None and answered.outcome.request.hash != request.hash:
            self._abandoned[request.row] = answered.outcome.attempts
            return None
        return answered

    def ask_again(self, answered: Answered) -> None:
        """The answer survives a kill when this returns, or it is held and the run stops."""
        if before := self._abandoned.get(answered.outcome.request.row):
            answered = replace(answered, outcome=after_attempts(answered.outcome, before))
        if self._is_holding:
            self._answered_held.append(answered)
            return
        try:
            self._run_dir.unfinished.record(answered)
        except StoreError as error:
            self._answered_held.append(answered)
            self._on_failure(error)

    async def begin(self, request: Request, response_id: str) -> None:
        """A background response has begun: on disk before it is waited for, or held."""
        try:
            await asyncio.to_thread(
                self._run_dir.unfinished.begin, request, self._endpoint, response_id
            )
        except StoreError as error:  # it is paid for: it is waited for as the others are
            self._begun_held[request.key] = request, response_id
            self._on_failure(error)

    def with_earlier(self, requests: Iterator[Request | BadRow]) -> Iterator[Request | BadRow]:
        """The requests, once the older outcomes of those sent again are read. `StoreError`."""
        again = self._resumed.again
        if not self._resumed.resent.rows:
            yield from requests
            return
        rows = EarlierRows(self._resumed.spans)
        while some := list(islice(requests, _ROWS_AT_ONCE)):
            wanted = {
                (valid_text(one.custom_id), *one.key[1:]): one.row for one in some if again[one.row]
            }
            if wanted:
                self._earlier.update(rows.find(wanted))
            yield from some

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """They survive a kill when this returns, but for what the disk refuses."""
        if self._earlier or self._abandoned:
            outcomes = [self._with_earlier(outcome) for outcome in outcomes]
        for outcome in outcomes if self._begun_held else ():
            self._begun_held.pop(outcome.request.key, None)
        if self._held:
            self._held.extend(outcomes)
            return
        began_s = time.perf_counter()
        kept = 0
        try:
            while kept < len(outcomes):
                kept += self._run_dir.store_some(outcomes[kept:])
        except StoreError as error:
            self._held.extend(outcomes[kept:])
            self._on_failure(error)
        finally:
            self.write_s += time.perf_counter() - began_s
            self._count(outcomes[:kept])

    def _with_earlier(self, outcome: Outcome) -> Outcome:
        row = outcome.request.row
        if attempts := self._abandoned.pop(row, ()):
            outcome = after_attempts(outcome, attempts)
        earlier = self._earlier.get(row)
        return outcome if earlier is None else with_earlier(outcome, earlier)

    async def write_held(self, is_hurried: Callable[[], bool], tell: Callable[[str], None]) -> str:
        """Writes what is held, if the disk takes it within a minute; what came of it, in words."""
        until_s = time.monotonic() + DISK_PATIENCE_S
        landed = len(self._held) + len(self._answered_held)
        while self._is_holding:
            try:
                await self._write_one()
            except StoreError as error:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or is_hurried():
                    break
                tell(f"{error}. Held for {left_s:.0f} s more: {self._held_in_words()}")
                await asyncio.sleep(min(1.0, left_s))
        if self._is_holding:
            return f" ({self._held_in_words()} that had arrived could not be kept)"
        return " (all answers that had arrived are kept)" if landed else ""

    async def _write_one(self) -> None:
        """Of what is held, so that it is not held any more. Raises `StoreError`."""
        if self._held:
            self._run_dir.store(self._held[0], anyway=True)
            self._count((self._held.popleft(),))
            return
        if self._answered_held:
            self._run_dir.unfinished.record(self._answered_held[0])
            self._answered_held.popleft()
            return
        key, (request, response_id) = next(iter(self._begun_held.items()))
        await asyncio.to_thread(
            self._run_dir.unfinished.begin, request, self._endpoint, response_id
        )
        del self._begun_held[key]

    def _held_in_words(self) -> str:
        """`3 answers`, `1 answer, 2 ids of background responses`."""
        answers = len(self._held) + len(self._answered_held)
        counts = {"answer": answers, "id of background responses": len(self._begun_held)}
        plural = {"answer": "answers", "id of background responses": "ids of background responses"}
        return ", ".join(
            f"{count:,} {what if count == 1 else plural[what]}"
            for what, count in counts.items()
            if count
        )

    @property
    def _is_holding(self) -> bool:
        """Whether there is anything that the disk did not take."""
        return bool(self._held or self._answered_held or self._begun_held)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        if self._earlier:
            for outcome in outcomes:
                earlier = self._earlier.pop(outcome.request.row, None)
                if earlier is not None:
                    self._tally.take_out(earlier.totals)
        self._tally.count(outcomes)
