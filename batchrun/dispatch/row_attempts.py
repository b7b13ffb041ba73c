"""What one row goes through: its attempts, how each ended, and what follows from it.

Only once no fresh row is left: before that, a second copy would take the place of a first one.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from batchrun.dispatch.attempt_result import AttemptResult, came_to, finish_of
from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.errors import EndpointError, RunStopped
from batchrun.job.sections import RetryJob
from batchrun.limits.answer_sizes import BodySize, measure, tier_asked
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
)
from batchrun.retry.next_step import (
    CURES,
    Again,
    Asks,
    Cure,
    GiveUp,
    Halt,
    judge,
    next_ask,
    with_limit,
)

_LATENCIES = 1_000  # of the last answers
_FEWEST = 20  # before that, nobody knows what slow is
_SLOW = 0.99  # the share of answers that come sooner than a slow one
_LOOK_EVERY_S = 0.1

Copy = TypeVar("Copy")


class Hedge:
    """Knows what slow is, and runs a row's copies against each other."""

    def __init__(self, is_tail: Callable[[], bool]) -> None:
        self._is_tail = is_tail
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._loop = asyncio.get_running_loop()
        self._due: dict[asyncio.Future[None], float] = {}  # to when the first copy was sent
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, latency_s: float) -> None:
        self._latencies.append(latency_s)

    async def race(
        self,
        first: Coroutine[Any, Any, Copy],
        second: Callable[[], Coroutine[Any, Any, Copy]],
        is_answer: Callable[[Copy], bool],
    ) -> list[Copy]:
        """The copies that came to an end, the one that counts first. Raises as `first` does."""
        tasks = [asyncio.create_task(first)]
        due: asyncio.Future[None] = self._loop.create_future()
        self._due[due] = self._loop.time()
        self._look_later()
        try:
            await asyncio.wait((tasks[0], due), return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                tasks.append(asyncio.create_task(second()))
            return await _first_answer(tasks, is_answer)
        finally:
            self._due.pop(due, None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_tail() and len(self._latencies) >= _FEWEST:
            ranked = sorted(self._latencies)
            sent_s = self._loop.time() - ranked[int(_SLOW * (len(ranked) - 1))]
            for due in [due for due, first_s in self._due.items() if first_s < sent_s]:
                del self._due[due]
                if not due.done():
                    due.set_result(None)
        if self._due:
            self._look_later()


async def _first_answer(
    tasks: list["asyncio.Task[Copy]"], is_answer: Callable[[Copy], bool]
) -> list[Copy]:
    ended: list[Copy] = []
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                copy = task.result()
            except (GateClosed, RunStopped):
                if task is tasks[0]:
                    raise
                continue  # no second copy may go: the first one goes on
            ended.append(copy)
        ended.sort(key=is_answer, reverse=True)
        if ended and is_answer(ended[0]):
            break
    return ended


_DROPPED = Finish(answered=False)
_NONE_ASKED = Asks()


class Endpoint(Protocol):
    """Where requests go."""

    @property
    def base_url(self) -> str: ...
    @property
    def via(self) -> str: ...
    def send(self, request: Request, client_request_id: str, left_s: float) -> Awaitable[Reply]:
        """The whole answer. Raises `EndpointError`."""


class Unfinished(Protocol):
    """What is on disk of rows that have no outcome yet."""

    def answered(self, request: Request, /) -> Answered | None:
        """The answer that an earlier command was to ask for again. Raises `StoreError`."""

    def ask_again(self, answered: Answered, /) -> None:
        """The answer is on disk when this returns; where it cannot be, the gate is closed."""


class Settled(Struct, frozen=True, gc=False):
    """An outcome, and the slot that is held until it is stored (null: given back already)."""

    outcome: Outcome
    slot: Slot | None = None
    finish: Finish = _DROPPED


class TryAgain(Exception):  # noqa: N818 - a verdict on its way through tenacity
    """The row is to be tried again after `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


class Means(Struct, frozen=True):
    """What the rows of a run are tried with."""

    endpoint: Endpoint
    gate: Gate
    scopes: Scopes
    retry: RetryJob
    prices: Prices
    key_name: str
    has_budget: bool  # dollars are capped
    hedge: Hedge | None
    next_id: Callable[[], str]  # a client request id
    unfinished: Unfinished


class _Copy(Struct, frozen=True, gc=False):
    """One try and the slot that it holds."""

    slot: Slot
    tried: AttemptResult


class Row(Struct, eq=False):
    """One row from its first try to its end."""

    means: Means
    request: Request  # as meant
    asked: Request  # as sent: another limit, or background work that is taken up
    scope: Scope
    state: ScopeState
    open: dict[int, "Row"]  # all that were sent and are not settled
    best: Outcome | None = None  # an answer that was asked for again
    first_sent_s: float = 0.0
    sent: int = 0
    attempts: list[Attempt] = []
    failures: list[tuple[Failure, float]] = []  # of this ask, and the loop's time
    size: BodySize | None = None
    asks: Asks = _NONE_ASKED
    kind: str = "first"  # of the next attempt
    spent_s: float = 0.0  # tries and backoffs, waits at the gate left out
    left_at_s: float | None = None  # when the last try ended

    def asks_again(self, settled: Settled) -> bool:
        """Whether this answer is to be asked for once more; its slot is given back for that."""
        result = settled.outcome.result
        if settled.slot is None or not isinstance(result, Response):
            return False
        again = next_ask(self.asked, result, self.asks, self.means.retry)
        if again is None:
            return False
        outcome, asks = settled.outcome, self.asks
        answered = Answered(
            key=self.request.key,
            turn=0,
            outcome=outcome,
            limit=self.asked.max_output_tokens,
            raised=asks.for_length,
            refitted=asks.for_fit,
        )
        self.means.unfinished.ask_again(answered)
        self.asked, self.asks = again
        self.best, self.kind, self.failures = settled.outcome, "reask", []
        self.means.gate.leave(settled.slot, settled.finish)
        return True

    def take_up(self, answered: Answered) -> Settled | None:
        """Goes on where an earlier command was; the outcome where nothing is asked any more."""
        outcome = replace(answered.outcome, request=self.request)
        assert isinstance(outcome.result, Response)  # noqa: S101 - answers alone are asked again
        self.attempts, self.best, self.kind = list(outcome.attempts), outcome, "reask"
        asked = self.request
        if answered.limit is not None and answered.limit != asked.max_output_tokens:
            asked = with_limit(asked, answered.limit)
        asks = Asks(answered.raised, answered.refitted)
        again = next_ask(asked, outcome.result, asks, self.means.retry)
        if again is None:
            return Settled(outcome)
        self.asked, self.asks = again
        return None

    def best_with_all(self) -> Outcome:
        """The answer that was asked for again, with the attempts since."""
        assert self.best is not None  # noqa: S101 - asked by who knows that there is one
        return replace(
            self.best,
            attempts=tuple(self.attempts),
            cost_usd=self._cost_usd(),
        )

    def after(self, first: TryAgain) -> Callable[[], Awaitable[Settled]]:
        """`attempt`, but the first call only says again what the first try came to."""
        verdicts = [first]

        async def attempt() -> Settled:
            if verdicts:
                raise verdicts.pop()
            return await self.attempt()

        return attempt

    async def attempt(self) -> Settled:
        """One try. Raises `TryAgain`, `RunStopped` or `GateClosed`."""
        means, hedge = self.means, self.means.hedge
        gate = means.gate
        if self.left_at_s is not None:
            self.spent_s += time.perf_counter() - self.left_at_s
        slot = await gate.enter(self.scope, self._need, again=self.sent > 0)
        began_s = time.perf_counter()
        if not self.sent:
            self.first_sent_s = began_s
            self.open[self.request.row] = self
        kind, self.kind = self.kind, "retry"
        if hedge is None:
            tried = await self._try(slot, kind)
        else:
            copy, *others = await hedge.race(
                self._copy(slot, kind), self._second, lambda one: one.tried.failure is None
            )
            for other in others:
                gate.leave(other.slot, finish_of(other.tried))
            slot, tried = copy.slot, copy.tried
        self.left_at_s = time.perf_counter()
        self.spent_s += self.left_at_s - began_s
        if self.asked.resume_id is not None:
            self.asked = replace(self.asked, resume_id=None)
        result, finish, state = tried.result, finish_of(tried), self.state
        if tried.failure is None and isinstance(result, Response):
            state.health.succeeded()
            state.sizes.told(result.usage.output_tokens, result.usage.input_tokens)
            if hedge is not None:
                hedge.answered(tried.attempt.latency_s)
            return Settled(self._outcome(result, tried), slot, finish)
        assert tried.failure is not None  # noqa: S101 - what is no response is one
        self.failures.append((tried.failure, asyncio.get_running_loop().time()))
        try:
            return Settled(self._ended(tried, tried.failure))
        except RunStopped:
            gate.close()  # before the slot is free: nobody may follow the row that ends the run
            raise
        finally:
            gate.leave(slot, finish)

    def _need(self) -> Need:
        request, sizes = self.asked, self.state.sizes
        tokens = len(request.body) // 4 + sizes.expected_output(request.max_output_tokens)
        if not self.means.has_budget:
            return Need(self.scope, tokens)
        self.size = self.size or measure(request.body)
        input_tokens = sizes.largest_input(self.size)
        output = sizes.largest_output(request.max_output_tokens)
        dollars = self.means.prices.bound(
            request.model,
            tier_asked(request.body),
            time.time_ns() // 1000,
            input_tokens,
            output,
        )
        return Need(self.scope, tokens, dollars)

    async def _try(self, slot: Slot, kind: str) -> AttemptResult:
        """One try in its slot, which it gives back itself only where it is dropped."""
        means = self.means
        client_request_id = means.next_id()
        begun = Attempt(
            started_at=time.time_ns() // 1000,
            latency_s=0.0,
            kind=kind,
            client_request_id=client_request_id,
        )
        began_s = time.perf_counter()
        self.sent += 1
        left_s = max(0.0, means.retry.max_elapsed_s - self.spent_s)
        try:
            came: Reply | EndpointError
            try:
                came = await means.endpoint.send(self.asked, client_request_id, left_s)
            except EndpointError as error:
                came = error
            latency_s = time.perf_counter() - began_s
            tried = came_to(came, self.asked, begun, latency_s, means.endpoint.via, means.prices)
        except BaseException:
            means.gate.leave(slot, _DROPPED)
            latency_s = time.perf_counter() - began_s
            said = "cancelled: the other copy of the row was answered first"
            self.attempts.append(replace(begun, latency_s=latency_s, error_message=said))
            raise
        self.attempts.append(tried.attempt)
        return tried

    async def _copy(self, slot: Slot, kind: str) -> _Copy:
        return _Copy(slot, await self._try(slot, kind))

    async def _second(self) -> _Copy:
        slot = await self.means.gate.enter(self.scope, self._need, again=True)
        return await self._copy(slot, "hedge")

    def _ended(self, tried: AttemptResult, failure: Failure) -> Outcome:
        """The outcome of a failed try, if it is the end. Raises `TryAgain` or `RunStopped`."""
        means, state, reply = self.means, self.state, tried.reply
        breaker = state.breaker
        verdict = judge(
            [failed for failed, _ in self.failures],
            excused=[breaker.excuses(failed_s) for _, failed_s in self.failures],
            hint_s=tried.hint_s,
            should_retry=reply.should_retry if reply else None,
            elapsed_s=self.spent_s,
            settings=means.retry,
            give_up_after_s=means.scopes.give_up_after_s,
            health=state.health,
            jitter=random.random(),  # noqa: S311 - a backoff, no secret
        )
        match verdict:
            case Again(wait_s):
                raise TryAgain(wait_s)
            case Halt(reason, cause):
                raise RunStopped(f"{failure.message} ({_of(failure)}): {reason}", cause)
            case GiveUp(status, reason):
                if self.best is not None:
                    return self.best_with_all()
                if CURES[failure.kind] is Cure.MEND:
                    state.health.refused()
                if isinstance(tried.result, Response) and status == "failed":
                    return self._outcome(tried.result, tried)
                message = f"{failure.message} ({reason})" if reason else failure.message
                return self._outcome(replace(failure, message=message, status=status), tried)

    def _outcome(self, result: Response | Failure, tried: AttemptResult) -> Outcome:
        endpoint, reply = self.means.endpoint, tried.reply
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
            priced_as=tried.priced_as,
            counted=self.attempts.index(tried.attempt),
        )

    def _cost_usd(self) -> float | None:
        return sum_costs([attempt.cost_usd for attempt in self.attempts])


def _of(failure: Failure) -> str:
    status = f"HTTP {failure.http_status}" if failure.http_status else failure.kind.value
    return f"{status}, {failure.code}" if failure.code else status
