"""One request to its outcome: attempts until it is answered or nothing helps. The only tenacity.

tenacity is entered when the first attempt has failed; a row that is answered at once pays nothing
for it. What follows a failure is decided in `retry.next_step`, and carried out here.
"""

import asyncio
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from batchrun.dialects.statuses import END_STATUSES
from batchrun.dispatch.attempt_result import AttemptResult, attempt_result, origin
from batchrun.dispatch.gate import Gate
from batchrun.dispatch.hedge import Hedge
from batchrun.dispatch.hold import Hold
from batchrun.errors import EndpointError, RunStopped
from batchrun.job.sections import RetryJob
from batchrun.limits.answer_sizes import BodySize, InputSize, measure, tier_asked
from batchrun.limits.scopes import Scopes, ScopeState
from batchrun.pricing.price import sum_costs
from batchrun.pricing.prices import Prices
from batchrun.records import (
    Answered,
    Attempt,
    Failure,
    Finish,
    Need,
    Outcome,
    Reply,
    Request,
    Response,
    Scope,
    Slot,
    UnreadableBody,
    shown_key,
)
from batchrun.retry.next_step import (
    Again,
    Asks,
    GiveUp,
    Halt,
    judge,
    next_ask,
    with_limit,
)

_DROPPED = Finish(answered=False)
_NONE_ASKED = Asks()


class Endpoint(Protocol):
    """Where requests go."""

    @property
    def base_url(self) -> str: ...
    @property
    def via(self) -> str: ...
    def send(
        self,
        request: Request,
        client_request_id: str,
        left_s: float,
        on_accepted: Callable[[], None],
        /,
    ) -> Awaitable[Reply]:
        """The whole answer. Raises `EndpointError`. `on_accepted`: of work in background."""


class Destination(NamedTuple):
    """An endpoint, and the name of the key that it gets."""

    endpoint: Endpoint
    key_name: str


class Unfinished(Protocol):
    """What is on disk of rows that have no outcome yet."""

    def answered(self, request: Request, /) -> Answered | None:
        """The answer that an earlier command was to ask for again. Raises `StoreError`."""

    def ask_again(self, answered: Answered, /) -> None:
        """The answer is on disk when this returns; where it cannot be, the gate is closed."""

    def store_unreadable(self, body: UnreadableBody, /) -> None:
        """The same for a body that nobody could read."""

    def add_spent(self, dollars: float, /) -> None:
        """So much more (or less) was spent on attempts that are not on disk."""


class _NothingUnfinished:
    """Knows nothing of earlier commands, and lets every answer be asked for again."""

    def answered(self, _request: Request) -> Answered | None:
        return None

    def ask_again(self, _answered: Answered) -> None:
        return

    def store_unreadable(self, _body: UnreadableBody) -> None:
        return

    def add_spent(self, _dollars: float) -> None:
        return


class Completed(Struct, frozen=True, gc=False):
    """An outcome, and the slot that is held until it is stored (null: given back already)."""

    outcome: Outcome
    slot: Slot | None = None
    finish: Finish = _DROPPED


class RetryLater(Exception):  # noqa: N818 - a verdict on its way through tenacity
    """The row gets another attempt after `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


def _wait_s(state: RetryCallState) -> float:
    verdict = state.outcome.exception() if state.outcome else None
    return verdict.wait_s if isinstance(verdict, RetryLater) else 0.0


class Dispatcher:
    """Completes requests: against one endpoint, or that of their variant."""

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
        of_variants: Mapping[str, Destination] | None = None,
    ) -> None:
        """`has_budget`: dollars are capped. `unfinished`: null where this process stores none.

        `of_variants`: for those whose requests go elsewhere.
        """
        self.retrying = 0  # rows between two attempts
        self.held = 0  # of rows that would end as failed, those that wait to see what others do
        self.no_more_rows = False  # all of the input is with a worker
        self.gate, self.scopes = gate, scopes
        self.retry, self.prices, self.has_budget = retry, prices, has_budget
        self.hold = Hold(gate, self.is_held_alone)
        self.hedge = Hedge(self.is_tail) if hedges else None
        self.unfinished = unfinished or _NothingUnfinished()
        self.open: dict[int, _RowAttempts] = {}  # rows sent and not complete, by their first send
        self._destination = Destination(endpoint, key_name)
        self._of_variants = of_variants or {}
        # By model, and for variants that go elsewhere by both.
        self._known: dict[object, tuple[Scope, ScopeState, Endpoint]] = {}
        self._run_id = uuid.uuid4().hex[:16]
        self._sent = 0
        # One configured object, copied for each row that fails: making it anew costs three times
        # as much, and a shared one is wrong under concurrency.
        self._retrying = AsyncRetrying(
            retry=retry_if_exception_type(RetryLater),
            wait=_wait_s,
            sleep=gate.pause,
            reraise=True,
        )

    async def complete(self, request: Request) -> Completed:
        """The end of `request`.

        Raises `RunStopped` or `GateClosed`: the row has no outcome, and an answer that was asked
        for again is on disk. `StoreError` where such an answer cannot be read.
        """
        model = request.model
        of: object = (request.variant, model) if self._of_variants else model
        scope, state, endpoint = self._known.get(of) or self._meet(of, request)
        row = _RowAttempts(self, request, request, scope, state, endpoint)
        answered = self.unfinished.answered(request)
        if answered is not None and (completed := row.resume(answered)) is not None:
            return completed
        try:
            while True:
                try:
                    completed = await row.attempt()
                except RetryLater as verdict:
                    completed = await self._retried(row, verdict.wait_s)
                if not row.asks_again(completed):
                    if row.noted_usd:
                        row.note_spent(len(row.attempts))
                    return completed
        finally:
            self.open.pop(id(row), None)

    async def _retried(self, row: "_RowAttempts", wait_s: float) -> Completed:
        """The row's end after a first failure. Raises as `complete`."""
        self.retrying += 1
        try:
            await self.gate.pause(wait_s)
            return await self._retrying.copy()(row.attempt)
        finally:
            self.retrying -= 1

    def is_held_alone(self) -> bool:
        """Whether no row is left that could show whether the endpoint fails."""
        return self.is_tail() and self.held == len(self.open)

    def is_tail(self) -> bool:
        """Whether every remaining row has been sent at least once."""
        return self.no_more_rows and self.gate.waiting == 0

    def oldest(self, most: int) -> list[tuple[str, float]]:
        """Rows sent and not complete: id, and seconds since the first send; the oldest first."""
        now_s = time.perf_counter()
        rows = list(self.open.values())[:most]
        return [(shown_key(row.request.key), now_s - row.first_sent_s) for row in rows]

    def retries(self) -> int:
        """Attempts beyond the first of rows that are not complete yet."""
        return sum(max(0, row.sent - 1) for row in self.open.values())

    def next_id(self) -> str:
        """A client request id, to be quoted to the provider's support."""
        self._sent += 1
        return f"{self._run_id}-{self._sent:x}"

    def endpoint_of(self, variant: str | None) -> Endpoint:
        """Where requests of a variant go."""
        return self._to(variant).endpoint

    def _to(self, variant: str | None) -> Destination:
        own = None if variant is None else self._of_variants.get(variant)
        return own or self._destination

    def _meet(self, of: object, request: Request) -> tuple[Scope, ScopeState, Endpoint]:
        """What is known of the requests like this one, from now on."""
        endpoint, key_name = self._to(request.variant)
        scope = Scope(endpoint.base_url, key_name, request.model or "")
        known = self._known[of] = scope, self.scopes.of(scope), endpoint
        return known


class _RowAttempts(Struct, eq=False):
    """One row from its first attempt to its end."""

    run: Dispatcher
    request: Request  # as meant
    asked: Request  # as sent: another limit, or background work that is resumed
    scope: Scope
    state: ScopeState
    endpoint: Endpoint
    best: Outcome | None = None  # an answer that was asked for again
    said: Response | None = None  # the most of an answer that a failed attempt has brought
    first_sent_s: float = 0.0
    sent: int = 0
    attempts: list[Attempt] = []
    failures: list[tuple[Failure, float]] = []  # of this ask, and the loop's time
    waited: set[float] = set()  # of the failures, those of a busy server
    size: BodySize | None = None
    input: InputSize | None = None
    asks: Asks = _NONE_ASKED
    kind: str = "first"  # of the next attempt
    spent_s: float = 0.0  # attempts and backoffs, without waits at the gate and what is excused
    ended_s: float | None = None  # when the last attempt ended
    on_disk: int = 0  # of the attempts
    noted_usd: float = 0.0  # known cost of the others, as noted
    failing_since_s: float = math.inf  # on the loop's clock

    async def attempt(self) -> Completed:
        """One attempt. Raises `RetryLater`, `RunStopped` or `GateClosed`."""
        run, gate, hedge = self.run, self.run.gate, self.run.hedge
        if self.ended_s is not None:
            self.spent_s += time.perf_counter() - self.ended_s
        slot = await gate.enter(self.scope, self._need, again=self.sent > 0)
        began_s = time.perf_counter()
        if not self.sent:
            self.first_sent_s, run.open[id(self)] = began_s, self
        kind, self.kind = self.kind, "retry"
        if hedge is None:
            attempted = (await self._send(slot, kind))[1]
        else:
            slot, attempted = await self._raced(hedge, slot, kind)
        self.ended_s = time.perf_counter()
        took_s = self.ended_s - began_s
        self.spent_s += took_s
        if self.asked.resume_id is not None:
            self.asked = replace(self.asked, resume_id=None)
        result, state = attempted.result, self.state
        if attempted.failure is None and isinstance(result, Response):
            state.health.has_succeeded = True
            if result.truncated:
                result = state.health.at_limit(result)
            usage = result.usage
            state.sizes.record(usage.output_tokens, usage.input_tokens)
            if usage.input_tokens is not None:
                state.sizes.record_input(self.asked.body, self.input, usage.input_tokens)
            if hedge is not None:
                hedge.answered(attempted.attempt.latency_s)
            return Completed(self._outcome(result, attempted), slot, attempted.finish())
        return await self._failed(attempted, slot, took_s)

    async def _failed(self, attempted: AttemptResult, slot: Slot, took_s: float) -> Completed:
        """After an attempt that failed: the row's end. Raises as `attempt`."""
        run, gate, state, result = self.run, self.run.gate, self.state, attempted.result
        if isinstance(result, Response) and (
            self.said is None or len(result.output) >= len(self.said.output)
        ):
            self.said = result
        self.note_spent(self.on_disk)
        failure, failed_s = attempted.failure, asyncio.get_running_loop().time()
        assert failure is not None  # noqa: S101 - what is no response is one
        self.failures.append((failure, failed_s))
        # It waited for others, of which fewer are in flight now: it costs the row no attempt. Each
        # may be billed (and is of unknown cost), but to give the row up loses what it has cost.
        if self.spent_s < run.retry.max_elapsed_s and state.has_waited(failure.kind):
            self.waited.add(failed_s)
        self.failing_since_s = min(self.failing_since_s, failed_s)
        finish = attempted.finish(self.request.row, self.failing_since_s)
        verdict = self._judge(attempted, finish)
        if isinstance(verdict, Halt):
            gate.close()  # before the slot is free: nobody may follow the row that ends the run
        gate.leave(slot, finish)
        match verdict:
            case Again(wait_s, asked_s):
                assert self.ended_s is not None  # noqa: S101 - the attempt has ended
                self.ended_s += asked_s
                if state.breaker.excuses(failed_s):
                    self.spent_s -= took_s
                raise RetryLater(wait_s)
            case Halt(reason, cause):
                raise RunStopped(f"{failure.message} ({origin(failure)}): {reason}", cause)
        if self.best is None and await self._is_endpoints(finish.endpoint_error, failed_s):
            self.spent_s -= took_s
            raise RetryLater(0.0)
        return Completed(self._given_up(attempted, failure, verdict))

    def _need(self) -> Need:
        request, sizes = self.asked, self.state.sizes
        output = sizes.expected_output(request.max_output_tokens)
        if self.input is None:
            self.input = sizes.size_of(request.body)
        tokens = sizes.expected_input(request.body, self.input) + output
        if not self.run.has_budget:
            return Need(self.scope, tokens, 0.0, output)
        self.size = self.size or measure(request.body)
        dollars = self.run.prices.bound(
            request.model,
            tier_asked(request.body),
            time.time_ns() // 1000,
            sizes.largest_input(self.size),
            sizes.largest_output(request.max_output_tokens),
        )
        return Need(self.scope, tokens, dollars, output)

    async def _send(self, slot: Slot, kind: str) -> tuple[Slot, AttemptResult]:
        """One attempt and its slot, which it gives back itself only where it is dropped."""
        run = self.run
        client_request_id = run.next_id()
        begun = Attempt(
            started_at=time.time_ns() // 1000,
            latency_s=0.0,
            kind=kind,
            client_request_id=client_request_id,
        )
        began_s = time.perf_counter()
        self.sent += 1
        left_s = max(0.0, run.retry.max_elapsed_s - self.spent_s)
        try:
            end: Reply | EndpointError
            try:
                accepted = partial(self._accepted, slot)
                end = await self.endpoint.send(self.asked, client_request_id, left_s, accepted)
            except EndpointError as error:
                end = error
            latency_s = time.perf_counter() - began_s
            attempted = attempt_result(
                end, self.asked, begun, latency_s, self.endpoint.via, run.prices, run.retry.words
            )
        except BaseException as error:
            is_stop = isinstance(error, RunStopped)
            if is_stop and kind != "hedge":  # a second copy alone stops nothing: the first goes on
                run.gate.close()  # before the slot is free: nobody may follow
            run.gate.leave(slot, _DROPPED)
            latency_s = time.perf_counter() - began_s
            cancelled = "cancelled: the other copy of the row was answered first"
            message = str(error) if is_stop else cancelled
            self.attempts.append(replace(begun, latency_s=latency_s, error_message=message))
            raise
        self.attempts.append(attempted.attempt)
        if attempted.unreadable is not None:
            run.unfinished.store_unreadable(attempted.unreadable)
        return slot, attempted

    def _accepted(self, slot: Slot) -> None:
        self.state.breaker.accepted(slot, asyncio.get_running_loop().time())

    async def _raced(self, hedge: Hedge, slot: Slot, kind: str) -> tuple[Slot, AttemptResult]:
        """The copy that counts, and its slot."""
        counting, *others = await hedge.race(
            self._send(slot, kind), self._second, lambda copy: copy[1].failure is None
        )
        for other_slot, other in others:
            self.run.gate.leave(other_slot, self._second_finish(other))
        return counting

    async def _second(self, tell_sent: Callable[[], None]) -> tuple[Slot, AttemptResult]:
        slot = await self.run.gate.enter(self.scope, self._need, again=True)
        tell_sent()
        return await self._send(slot, "hedge")

    def _second_finish(self, copy: AttemptResult) -> Finish:
        """Of the copy that does not count. Nobody judges how long its server asks to wait."""
        finish = copy.finish()
        is_too_long = (finish.hint_s or 0.0) > self.run.scopes.patience.answered_s
        return replace(finish, hint_s=None) if is_too_long else finish

    def note_spent(self, on_disk: int) -> None:
        """Notes what is known to be spent on attempts that are not on disk: a stop loses them.

        `on_disk`: how many are.
        """
        self.on_disk = on_disk
        spent_usd = sum(attempt.cost_usd or 0.0 for attempt in self.attempts[on_disk:])
        if self.run.has_budget and spent_usd != self.noted_usd:
            self.run.unfinished.add_spent(spent_usd - self.noted_usd)
            self.noted_usd = spent_usd

    def _judge(self, attempted: AttemptResult, finish: Finish) -> Again | GiveUp | Halt:
        """What follows the last of the failures."""
        run, state, reply = self.run, self.state, attempted.reply
        breaker, error = state.breaker, finish.endpoint_error
        was_met = error is not None and breaker.is_rows_own(self.failing_since_s, error)
        return judge(
            [failed for failed, _ in self.failures],
            excused=[
                failed_s in self.waited or breaker.excuses(failed_s)
                for _, failed_s in self.failures
            ],
            hint_s=finish.hint_s,
            should_retry=reply.should_retry if reply else None,
            elapsed_s=self.spent_s,
            settings=run.retry,
            give_up_after_s=run.scopes.patience.answered_s,
            has_succeeded=state.health.has_succeeded or was_met,
            jitter=random.random(),  # noqa: S311 - a backoff, no secret
            is_begun=reply is None and attempted.attempt.response_id is not None,
        )

    async def _is_endpoints(self, error: str | None, failed_s: float) -> bool:
        """Whether the endpoint fails, not the row, which then is sent again: others may show it.

        A row that fails again once others were answered is to blame itself. Raises `GateClosed`:
        then nobody knows, and the row has no outcome.
        """
        run, breaker = self.run, self.state.breaker
        if error is None or not breaker.may_hold:
            return False
        since_s = self.failing_since_s
        run.held += 1
        try:
            await run.hold.wait(
                lambda: breaker.excuses(failed_s) or breaker.is_rows_own(since_s, error)
            )
        finally:
            run.held -= 1
            self.ended_s = time.perf_counter()  # the wait is none of the row's time
        return breaker.excuses(failed_s)

    def _given_up(self, attempted: AttemptResult, failure: Failure, end: GiveUp) -> Outcome:
        if self.best is not None:  # the answer in hand, with the attempts since
            attempts, cost_usd = tuple(self.attempts), self._cost_usd()
            return replace(self.best, attempts=attempts, cost_usd=cost_usd)
        result, said = attempted.result, self.said
        is_said = isinstance(result, Response) and result.status in END_STATUSES
        if is_said and end.status == "failed":  # as the API says itself
            return self._outcome(result, attempted)
        message = f"{failure.message} ({end.reason})" if end.reason else failure.message
        failure = replace(failure, message=message, status=end.status)
        if said is None:
            return self._outcome(failure, attempted)
        return self._outcome(replace(said, status=end.status, failure=failure), attempted)

    def _outcome(self, result: Response | Failure, attempted: AttemptResult) -> Outcome:
        endpoint, reply = self.endpoint, attempted.reply
        if len(self.attempts) > 1:
            self.attempts.sort(key=lambda attempt: attempt.started_at)
        return Outcome(
            request=self.request,
            result=result,
            attempts=tuple(self.attempts),
            endpoint=endpoint.base_url,
            via=endpoint.via,
            first_token_s=reply.first_token_s if reply else None,
            cost_usd=self._cost_usd(),
            priced_as=attempted.priced_as,
            counted=self.attempts.index(attempted.attempt),
        )

    def _cost_usd(self) -> float | None:
        return sum_costs([attempt.cost_usd for attempt in self.attempts])

    def asks_again(self, completed: Completed) -> bool:
        """Whether this answer is to be asked for once more; its slot is given back for that."""
        outcome, asks = completed.outcome, self.asks
        if completed.slot is None or not isinstance(outcome.result, Response):
            return False
        again = next_ask(self.asked, outcome.result, asks, self.run.retry)
        if again is None:
            return False
        answered = Answered(
            key=self.request.key,
            turn=0,
            outcome=outcome,
            limit=self.asked.max_output_tokens,
            raised=asks.for_length,
            refitted=asks.for_fit,
        )
        self.run.unfinished.ask_again(answered)
        self.note_spent(len(self.attempts))
        self.asked, self.asks = again
        self.best, self.kind, self.failures = outcome, "reask", []
        self.run.gate.leave(completed.slot, completed.finish)
        return True

    def resume(self, answered: Answered) -> Completed | None:
        """Goes on where an earlier command was; the outcome where nothing is asked any more."""
        outcome = replace(answered.outcome, request=self.request)
        assert isinstance(outcome.result, Response)  # noqa: S101 - answers alone are asked again
        self.attempts, self.best, self.kind = list(outcome.attempts), outcome, "reask"
        self.on_disk = len(self.attempts)
        asked = self.request
        if answered.limit is not None and answered.limit != asked.max_output_tokens:
            asked = with_limit(asked, answered.limit)
        asks = Asks(answered.raised, answered.refitted)
        again = next_ask(asked, outcome.result, asks, self.run.retry)
        if again is None:
            return Completed(outcome)
        self.asked, self.asks = again
        return None
