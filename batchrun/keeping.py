"""The last steps of a row: into the run directory, then counted.

What a failing disk does not take is held in memory, and written if it takes it again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from batchrun.errors import StoreError
from batchrun.records import BadRow, Earlier, Outcome, Request
from batchrun.report.summary import Tally
from batchrun.resume import Resumed, with_earlier
from batchrun.store.earlier import EarlierRows, Wanted
from batchrun.store.run_dir import RunDir

DISK_PATIENCE_S = 60.0  # for a disk that does not take what has arrived
_ROWS_AT_ONCE = 64  # whose older outcomes are read together


class Keeper:
    """Keeps a run's outcomes; one that replaces an older outcome takes its attempts along."""

    def __init__(self, run_dir: RunDir, tally: Tally, resumed: Resumed) -> None:
        self._run_dir, self._tally, self._resumed = run_dir, tally, resumed
        self._earlier: dict[int, Earlier] = {}  # by row: of those read and sent again
        self._held: deque[Outcome] = deque()  # what the disk did not take
        self.write_s = 0.0  # spent in writing

    def with_earlier(self, requests: Iterator[Request | BadRow]) -> Iterator[Request | BadRow]:
        """The requests, once the older outcomes of those sent again are read. `StoreError`."""
        again = self._resumed.again
        if not self._resumed.resent.rows:
            yield from requests
            return
        rows = EarlierRows(self._resumed.spans)
        while some := list(islice(requests, _ROWS_AT_ONCE)):
            wanted = [Wanted(one.row, one.custom_id) for one in some if again[one.row]]
            if wanted:
                self._earlier.update(rows.find(wanted))
            yield from some

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """They survive a kill when this returns. What the disk refuses is held: `StoreError`."""
        if self._earlier:
            outcomes = [self._with_earlier(outcome) for outcome in outcomes]
        if self._held:
            self._held.extend(outcomes)
            return
        began_s = time.perf_counter()
        kept = 0
        try:
            while kept < len(outcomes):
                kept += self._run_dir.keep_some(outcomes[kept:])
        except StoreError:
            self._held.extend(outcomes[kept:])
            raise
        finally:
            self.write_s += time.perf_counter() - began_s
            self._count(outcomes[:kept])

    def _with_earlier(self, outcome: Outcome) -> Outcome:
        earlier = self._earlier.get(outcome.request.row)
        return outcome if earlier is None else with_earlier(outcome, earlier)

    async def keep_held(
        self, error: StoreError, is_hurried: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        """Writes what is held, if the disk takes it within a minute. Raises `error` at its end."""
        until_s = time.monotonic() + DISK_PATIENCE_S
        landed = len(self._held)
        while self._held:
            try:
                self._run_dir.keep(self._held[0], anyway=True)
            except StoreError:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or is_hurried():
                    break
                tell(f"{error}. {len(self._held):,} answers are held for {left_s:.0f} s more")
                await asyncio.sleep(min(1.0, left_s))
            else:
                self._count((self._held.popleft(),))
        if lost := len(self._held):
            raise StoreError(f"{error} ({lost:,} answers that had arrived could not be kept)")
        if landed:
            raise StoreError(f"{error} (all answers that had arrived are kept)")
        raise error

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        if self._earlier:
            for outcome in outcomes:
                earlier = self._earlier.pop(outcome.request.row, None)
                if earlier is not None:
                    self._tally.take_out(earlier.totals)
        self._tally.count(outcomes)
