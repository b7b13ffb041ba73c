"""What one row goes through: its tries, what each came to, and what follows from it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct
from msgspec.structs import replace

from batchrun.dispatch.gate import Gate
from batchrun.dispatch.hedge import Hedge
from batchrun.dispatch.tries import Endpoint, Tried, finish_of, send_once
from batchrun.errors import RunStopped
from batchrun.job import RetryJob
from batchrun.policy.reask import Asks, next_ask
from batchrun.policy.retry import CURES, Again, Cure, GiveUp, Halt, judge
from batchrun.policy.scopes import Scopes, ScopeState
from batchrun.policy.sizes import BodySize, measure, tier_asked
from batchrun.pricing.price import sum_costs
from batchrun.pricing.prices import Prices
from batchrun.records import (
    Attempt,
    Failure,
    Finish,
    Need,
    Outcome,
    Request,
    Response,
    Scope,
    Slot,
)

_DROPPED = Finish(answered=False)


class Settled(Struct, frozen=True):
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


class _Copy(Struct, frozen=True):
    """One try and the slot that it holds."""

    slot: Slot
    tried: Tried


class Row:
    """One row from its first try to its end."""

    def __init__(
        self, means: Means, request: Request, on_first_send: Callable[["Row"], None]
    ) -> None:
        self.best: Outcome | None = None  # an answer that was asked for again
        self.first_sent_s = 0.0
        self.sent = 0
        self._means = means
        self._on_first_send = on_first_send
        self._request = request  # as meant
        self._asked = request  # as sent: another limit, or background work that is taken up
        self._scope = Scope(means.endpoint.base_url, means.key_name, request.model or "")
        self._state: ScopeState = means.scopes.of(self._scope)
        self._attempts: list[Attempt] = []
        self._failures: list[tuple[Failure, float]] = []  # of this ask, and the loop's time
        self._size: BodySize | None = None
        self._asks = Asks()
        self._kind = "first"
        self._spent_s = 0.0  # tries and backoffs, waits at the gate left out
        self._left_at_s: float | None = None  # when the last try ended

    @property
    def custom_id(self) -> str:
        return self._request.custom_id

    @property
    def number(self) -> int:
        return self._request.row

    def asks_again(self, settled: Settled) -> bool:
        """Whether this answer is to be asked for once more; its slot is given back for that."""
        result = settled.outcome.result
        if settled.slot is None or not isinstance(result, Response):
            return False
        again = next_ask(self._asked, result, self._asks, self._means.retry)
        if again is None:
            return False
        self._asked, self._asks = again
        self.best, self._kind, self._failures = settled.outcome, "reask", []
        self._means.gate.leave(settled.slot, settled.finish)
        return True

    def best_with_all(self) -> Outcome:
        """The answer that was asked for again, with the attempts since."""
        assert self.best is not None  # noqa: S101 - asked by who knows that there is one
        return replace(
            self.best,
            attempts=tuple(self._attempts),
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
        means, hedge = self._means, self._means.hedge
        gate = means.gate
        if self._left_at_s is not None:
            self._spent_s += time.perf_counter() - self._left_at_s
        slot = await gate.enter(self._scope, self._need, again=self.sent > 0)
        began_s = time.perf_counter()
        if not self.sent:
            self.first_sent_s = began_s
            self._on_first_send(self)
        kind, self._kind = self._kind, "retry"
        if hedge is None:
            copy, others = await self._copy(slot, kind), []
        else:
            copy, *others = await hedge.race(
                self._copy(slot, kind), self._second, lambda one: one.tried.failure is None
            )
        self._left_at_s = time.perf_counter()
        self._spent_s += self._left_at_s - began_s
        self._asked = replace(self._asked, resume_id=None) if self._asked.resume_id else self._asked
        for other in others:
            gate.leave(other.slot, finish_of(other.tried))
        tried, finish = copy.tried, finish_of(copy.tried)
        if tried.failure is None:
            self._state.health.succeeded()
            assert isinstance(tried.result, Response)  # noqa: S101 - it has no failure
            usage = tried.result.usage
            self._state.sizes.told(usage.output_tokens, usage.input_tokens)
            if hedge is not None:
                hedge.answered(tried.attempt.latency_s)
            return Settled(self._outcome(tried.result, tried), copy.slot, finish)
        self._failures.append((tried.failure, asyncio.get_running_loop().time()))
        try:
            return Settled(self._ended(tried, tried.failure))
        except RunStopped:
            gate.close()  # before the slot is free: nobody may follow the row that ends the run
            raise
        finally:
            gate.leave(copy.slot, finish)

    def _need(self) -> Need:
        request, sizes = self._asked, self._state.sizes
        tokens = len(request.body) // 4 + sizes.expected_output(request.max_output_tokens)
        if not self._means.has_budget:
            return Need(self._scope, tokens)
        self._size = self._size or measure(request.body)
        input_tokens = sizes.largest_input(self._size)
        output = sizes.largest_output(request.max_output_tokens)
        dollars = self._means.prices.bound(
            request.model,
            tier_asked(request.body),
            time.time_ns() // 1000,
            input_tokens,
            output,
        )
        return Need(self._scope, tokens, dollars)

    async def _copy(self, slot: Slot, kind: str) -> _Copy:
        """One try in its slot, which it gives back itself only where it is dropped."""
        means = self._means
        begun = Attempt(
            started_at=time.time_ns() // 1000,
            latency_s=0.0,
            kind=kind,
            client_request_id=means.next_id(),
        )
        began_s = time.perf_counter()
        self.sent += 1
        left_s = max(0.0, means.retry.max_elapsed_s - self._spent_s)
        try:
            tried = await send_once(means.endpoint, self._asked, begun, left_s, means.prices)
        except BaseException:
            means.gate.leave(slot, _DROPPED)
            latency_s = time.perf_counter() - began_s
            said = "cancelled: the other copy of the row was answered first"
            self._attempts.append(replace(begun, latency_s=latency_s, error_message=said))
            raise
        self._attempts.append(tried.attempt)
        return _Copy(slot, tried)

    async def _second(self) -> _Copy:
        slot = await self._means.gate.enter(self._scope, self._need, again=True)
        return await self._copy(slot, "hedge")

    def _ended(self, tried: Tried, failure: Failure) -> Outcome:
        """The outcome of a failed try, if it is the end. Raises `TryAgain` or `RunStopped`."""
        means, state, reply = self._means, self._state, tried.reply
        breaker = state.breaker
        verdict = judge(
            [failed for failed, _ in self._failures],
            excused=[breaker.excuses(failed_s) for _, failed_s in self._failures],
            hint_s=tried.hint_s,
            should_retry=reply.should_retry if reply else None,
            elapsed_s=self._spent_s,
            settings=means.retry,
            give_up_after_s=means.scopes.give_up_after_s,
            health=state.health,
            jitter=random.random(),  # noqa: S311 - a backoff, no secret
        )
        match verdict:
            case Again(wait_s):
                raise TryAgain(wait_s)
            case Halt(reason):
                raise RunStopped(f"{failure.message} ({_of(failure)}): {reason}")
            case GiveUp(status, reason):
                if self.best is not None:
                    return self.best_with_all()
                if CURES[failure.kind] is Cure.MEND:
                    state.health.refused()
                if isinstance(tried.result, Response) and status == "failed":
                    return self._outcome(tried.result, tried)
                message = f"{failure.message} ({reason})" if reason else failure.message
                return self._outcome(replace(failure, message=message, status=status), tried)

    def _outcome(self, result: Response | Failure, tried: Tried) -> Outcome:
        endpoint, reply = self._means.endpoint, tried.reply
        if len(self._attempts) > 1:
            self._attempts.sort(key=lambda attempt: attempt.started_at)
        return Outcome(
            request=self._request,
            result=result,
            attempts=tuple(self._attempts),
            endpoint=endpoint.base_url,
            via=endpoint.via,
            first_token_s=reply.first_token_s if reply else None,
            cost_usd=self._cost_usd(),
            priced_as=tried.priced_as,
            counted=self._attempts.index(tried.attempt),
        )

    def _cost_usd(self) -> float | None:
        return sum_costs([attempt.cost_usd for attempt in self._attempts])


def _of(failure: Failure) -> str:
    status = f"HTTP {failure.http_status}" if failure.http_status else failure.kind.value
    return f"{status}, {failure.code}" if failure.code else status
