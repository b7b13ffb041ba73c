"""One request to its outcome: attempts until it is answered or nothing helps. The only tenacity.

tenacity is entered when the first try has failed; a row that is answered at once pays nothing
for it. What follows a failure is decided in `policy.retry`, and carried out here and in `row`.
"""

import time
import uuid

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from batchrun.dispatch.gate import Gate
from batchrun.dispatch.row_attempts import (
    Endpoint,
    Hedge,
    Means,
    Row,
    Settled,
    TryAgain,
    Unfinished,
)
from batchrun.job.sections import RetryJob
from batchrun.limits.scopes import Scopes, ScopeState
from batchrun.pricing.prices import Prices
from batchrun.records import Answered, Request, Scope


class _Nowhere:
    """Knows nothing of earlier commands, and lets every answer be asked for again."""

    def answered(self, _request: Request) -> Answered | None:
        return None

    def ask_again(self, _answered: Answered) -> None:
        return


def _wait_s(state: RetryCallState) -> float:
    verdict = state.outcome.exception() if state.outcome else None
    return verdict.wait_s if isinstance(verdict, TryAgain) else 0.0


class Dispatcher:
    """Settles requests against one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        gate: Gate,
        scopes: Scopes,
        retry: RetryJob,
        prices: Prices,
        *,
        key_name: str,
        has_budget: bool = False,
        hedges: bool = False,
        unfinished: Unfinished | None = None,
    ) -> None:
        """`unfinished`: null where nothing outlives this process."""
        self.retrying = 0  # rows between two tries
        self.no_more_rows = False  # all of the input has a place
        self.endpoint = endpoint
        self._gate = gate
        self._means = Means(
            endpoint=endpoint,
            gate=gate,
            scopes=scopes,
            retry=retry,
            prices=prices,
            key_name=key_name,
            has_budget=has_budget,
            hedge=Hedge(self.is_tail) if hedges else None,
            next_id=self._next_id,
            unfinished=unfinished or _Nowhere(),
        )
        self._open: dict[int, Row] = {}  # rows sent and not settled, in order of their first send
        self._known: dict[str | None, tuple[Scope, ScopeState]] = {}  # by model
        self._run_id = uuid.uuid4().hex[:16]
        self._sent = 0
        # One configured object, copied for each row that fails: making it anew costs three times
        # as much, and a shared one is wrong under concurrency.
        self._retrying = AsyncRetrying(
            retry=retry_if_exception_type(TryAgain),
            wait=_wait_s,
            sleep=gate.pause,
            reraise=True,
        )

    async def settle(self, request: Request) -> Settled:
        """The end of `request`.

        Raises `RunStopped` or `GateClosed`: the row has no outcome, and an answer that was asked
        for again is on disk. `StoreError` where such an answer cannot be read.
        """
        scope, state = self._known.get(request.model) or self._scope_of(request.model)
        row = Row(self._means, request, request, scope, state, self._open)
        answered = self._means.unfinished.answered(request)
        if answered is not None and (settled := row.take_up(answered)) is not None:
            return settled
        try:
            while True:
                try:
                    settled = await row.attempt()
                except TryAgain as first:
                    settled = await self._tried_again(row, first)
                if not row.asks_again(settled):
                    return settled
        finally:
            self._open.pop(request.row, None)

    async def _tried_again(self, row: Row, first: TryAgain) -> Settled:
        """Until it is answered or nothing helps."""
        self.retrying += 1
        try:
            return await self._retrying.copy()(row.after(first))
        finally:
            self.retrying -= 1

    def is_tail(self) -> bool:
        """Whether every row that is left has been sent at least once."""
        return self.no_more_rows and self._gate.waiting == 0

    def oldest(self, most: int) -> list[tuple[str, float]]:
        """Rows sent and not settled: id, and seconds since the first send; the oldest first."""
        now_s = time.perf_counter()
        rows = list(self._open.values())[:most]
        return [(row.request.custom_id, now_s - row.first_sent_s) for row in rows]

    def retries(self) -> int:
        """Attempts beyond the first of rows that are not settled yet."""
        return sum(max(0, row.sent - 1) for row in self._open.values())

    def _scope_of(self, model: str | None) -> tuple[Scope, ScopeState]:
        scope = Scope(self.endpoint.base_url, self._means.key_name, model or "")
        known = self._known[model] = scope, self._means.scopes.of(scope)
        return known

    def _next_id(self) -> str:
        """A client request id, to be quoted to the provider's support."""
        self._sent += 1
        return f"{self._run_id}-{self._sent:x}"
