"""One request to its outcome: tries until it is answered or nothing helps. The only tenacity.

tenacity is entered when the first try has failed; a row that is answered at once pays nothing
for it. What follows a failure is decided in `policy.retry`; here it is only carried out.
"""

import random
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.errors import EndpointError, ErrorKind, RunStopped
from batchrun.job import RetryJob
from batchrun.parse.error_body import ErrorAnswer, parse_error
from batchrun.parse.response import Unreadable, parse_response
from batchrun.policy.classify import classify, hint_in
from batchrun.policy.reask import Asks, next_ask
from batchrun.policy.retry import CURES, Again, Cure, GiveUp, Halt, ScopeHealth, judge
from batchrun.records import Attempt, Failure, Need, Outcome, Reply, Request, Response, Scope


class Endpoint(Protocol):
    """Where requests go."""

    @property
    def base_url(self) -> str: ...
    @property
    def via(self) -> str: ...
    def send(self, request: Request, client_request_id: str, left_s: float) -> Awaitable[Reply]:
        """The whole answer. Raises `EndpointError`."""


class Settled(Struct, frozen=True):
    """An outcome, and the slot that is held until it is stored (null: given back already)."""

    outcome: Outcome
    slot: Need | None


class _TryAgain(Exception):  # noqa: N818 - a verdict on its way through tenacity
    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


def _wait_s(state: RetryCallState) -> float:
    verdict = state.outcome.exception() if state.outcome else None
    return verdict.wait_s if isinstance(verdict, _TryAgain) else 0.0


class Dispatcher:
    """Settles requests against one endpoint; keeps what is known of each scope's health."""

    def __init__(self, endpoint: Endpoint, gate: Gate, retry: RetryJob, key_name: str) -> None:
        self.retrying = 0  # rows between two tries
        self.endpoint = endpoint
        self.gate = gate
        self.settings = retry
        self._key_name = key_name
        self._health: dict[Scope, ScopeHealth] = {}
        self._run_id = uuid.uuid4().hex[:16]
        self._sent = 0
        # One configured object, copied for each row that fails: making it anew costs three times
        # as much, and a shared one is wrong under concurrency.
        self._retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            wait=_wait_s,
            sleep=gate.pause,
            reraise=True,
        )

    async def settle(self, request: Request) -> Settled:
        """The end of `request`. Raises `RunStopped` or `GateClosed`: the row stays unsettled."""
        row = _Row(self, request)
        while True:
            try:
                settled = await self._answered(row)
            except (RunStopped, GateClosed):
                if row.best is None:
                    raise
                return Settled(row.best_with_all(), None)  # paid for, and the best there is
            if not row.asks_again(settled):
                return settled

    async def _answered(self, row: "_Row") -> Settled:
        """One ask: tried until it is answered or nothing helps."""
        try:
            return await row.attempt()
        except _TryAgain as verdict:
            first = verdict
        self.retrying += 1
        try:
            return await self._retrying.copy()(row.after(first))
        finally:
            self.retrying -= 1

    def need(self, request: Request) -> Need:
        scope = Scope(self.endpoint.base_url, self._key_name, request.model or "")
        return Need(scope, len(request.body) // 4)

    def health(self, scope: Scope) -> ScopeHealth:
        return self._health.setdefault(scope, ScopeHealth())

    def next_id(self) -> str:
        """A client request id, to be quoted to the provider's support."""
        self._sent += 1
        return f"{self._run_id}-{self._sent:x}"


class _Row:
    """What one row has been through."""

    def __init__(self, dispatcher: Dispatcher, request: Request) -> None:
        self.best: Outcome | None = None  # an answer that was asked for again
        self._dispatcher = dispatcher
        self._request = request  # as meant
        self._asked = request  # as sent: another limit, or background work that is taken up
        self._need = dispatcher.need(request)
        self._attempts: list[Attempt] = []
        self._failures: list[Failure] = []  # of this ask
        self._asks = Asks()
        self._kind = "first"
        self._has_slot = False  # held from one ask to the next
        self._spent_s = 0.0  # tries and backoffs, waits at the gate left out
        self._left_at_s: float | None = None  # when the last try ended

    def asks_again(self, settled: Settled) -> bool:
        """Whether this answer is to be asked for once more; its slot is kept for that."""
        result = settled.outcome.result
        if settled.slot is None or not isinstance(result, Response):
            return False
        again = next_ask(self._asked, result, self._asks, self._dispatcher.settings)
        if again is None:
            return False
        self._asked, self._asks = again
        self.best, self._kind, self._has_slot = settled.outcome, "reask", True
        self._failures = []
        return True

    def best_with_all(self) -> Outcome:
        """The answer that was asked for again, with the attempts since."""
        assert self.best is not None  # noqa: S101 - asked by who knows that there is one
        return replace(self.best, attempts=tuple(self._attempts))

    def after(self, first: _TryAgain) -> Callable[[], Awaitable[Settled]]:
        """`attempt`, but the first call only says again what the first try came to."""
        verdicts = [first]

        async def attempt() -> Settled:
            if verdicts:
                raise verdicts.pop()
            return await self.attempt()

        return attempt

    async def attempt(self) -> Settled:
        """One try. Raises `_TryAgain`, `RunStopped` or `GateClosed`."""
        dispatcher = self._dispatcher
        gate, now_s = dispatcher.gate, time.perf_counter  # uvloop's own clock ticks in ms
        if self._left_at_s is not None:
            self._spent_s += now_s() - self._left_at_s
        if not self._has_slot:
            await gate.enter(self._need)
        self._has_slot = False
        started_at, started_s = time.time_ns() // 1000, now_s()
        client_request_id = dispatcher.next_id()
        left_s = max(0.0, dispatcher.settings.max_elapsed_s - self._spent_s)
        reply: Reply | None = None
        response_id: str | None = None
        result: Response | Failure
        try:
            reply = await dispatcher.endpoint.send(self._asked, client_request_id, left_s)
            result = read_reply(reply, self._asked)
        except EndpointError as error:
            result = Failure(error.kind, error.message, http_status=error.http_status)
            response_id = error.response_id
        except BaseException:
            gate.leave(self._need, answered=False)
            raise
        self._left_at_s = now_s()
        latency_s = self._left_at_s - started_s
        self._spent_s += latency_s
        attempt = _attempt(self._kind, reply, result)
        self._attempts.append(
            replace(
                attempt,
                started_at=started_at,
                latency_s=latency_s,
                client_request_id=client_request_id,
                response_id=attempt.response_id or response_id,
            )
        )
        self._kind = "retry"
        self._asked = replace(self._asked, resume_id=None) if self._asked.resume_id else self._asked
        health = dispatcher.health(self._need.scope)
        if isinstance(result, Response) and result.failure is None:
            health.succeeded()
            return Settled(self._outcome(result, reply), self._need)
        try:
            return Settled(self._ended(result, reply, health), None)
        except RunStopped:
            gate.close()  # before the slot is free: nobody may follow the row that ends the run
            raise
        finally:
            gate.leave(self._need, answered=reply is not None)

    def _ended(
        self, result: Response | Failure, reply: Reply | None, health: ScopeHealth
    ) -> Outcome:
        """The outcome of a failed try, if it is the end. Raises `_TryAgain` or `RunStopped`."""
        failure = result if isinstance(result, Failure) else result.failure
        assert failure is not None  # noqa: S101 - an answered row does not come here
        self._failures.append(failure)
        hint_s = reply.retry_after_s if reply else None
        verdict = judge(
            self._failures,
            hint_s=hint_in(failure.message) if hint_s is None else hint_s,
            should_retry=reply.should_retry if reply else None,
            elapsed_s=self._spent_s,
            settings=self._dispatcher.settings,
            health=health,
            jitter=random.random(),  # noqa: S311 - a backoff, no secret
        )
        match verdict:
            case Again(wait_s):
                raise _TryAgain(wait_s)
            case Halt(reason):
                raise RunStopped(f"{failure.message} ({_of(failure)}): {reason}")
            case GiveUp(status, reason):
                if self.best is not None:
                    return self.best_with_all()
                if CURES[failure.kind] is Cure.MEND:
                    health.refused()
                if isinstance(result, Response) and status == "failed":
                    return self._outcome(result, reply)
                message = f"{failure.message} ({reason})" if reason else failure.message
                return self._outcome(replace(failure, message=message, status=status), reply)

    def _outcome(self, result: Response | Failure, reply: Reply | None) -> Outcome:
        endpoint = self._dispatcher.endpoint
        return Outcome(
            request=self._request,
            result=result,
            attempts=tuple(self._attempts),
            endpoint=endpoint.base_url,
            via=endpoint.via,
            first_token_s=reply.first_token_s if reply else None,
            counted=len(self._attempts) - 1,
        )


def _attempt(kind: str, reply: Reply | None, result: Response | Failure) -> Attempt:
    """What is known of a try besides its times."""
    response = result if isinstance(result, Response) else None
    failure = response.failure if response else result if isinstance(result, Failure) else None
    return Attempt(
        started_at=0,
        latency_s=0.0,
        kind=kind,
        http_status=reply.http_status if reply else failure.http_status if failure else None,
        error_kind=failure.kind if failure else None,
        error_message=failure.message if failure else None,
        request_id=reply.request_id if reply else None,
        response_id=response.id if response else None,
        input_tokens=response.usage.input_tokens if response else None,
        cached_tokens=response.usage.cached_tokens if response else None,
        output_tokens=response.usage.output_tokens if response else None,
    )


def read_reply(reply: Reply, request: Request) -> Response | Failure:
    """What a whole answer comes to: understood, and its error classified."""
    status = reply.http_status
    answer: Response | ErrorAnswer | Unreadable
    if 200 <= status < 300:
        answer = parse_response(reply.body, request, reply.reported_cost_usd)
    else:
        answer = parse_error(reply.body)
    match answer:
        case Response(failure=Failure(code=code, message=message) as failure):
            kind = failure.kind
            if kind is not ErrorKind.CANCELLED:
                kind = classify(status, code, None, message)
            return replace(answer, failure=replace(failure, kind=kind, http_status=status))
        case Response():
            return answer
        case Unreadable(message):
            return Failure(ErrorKind.UNREADABLE, message, http_status=status)
        case ErrorAnswer(message, code, error_type, is_html):
            kind = classify(status, code, error_type, message, is_html=is_html)
            return Failure(kind, message, code, status)


def _of(failure: Failure) -> str:
    status = f"HTTP {failure.http_status}" if failure.http_status else failure.kind.value
    return f"{status}, {failure.code}" if failure.code else status
