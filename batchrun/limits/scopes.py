"""What is known about each scope: its limits, its health, the sizes of its answers. No I/O."""

from collections.abc import Collection, ItemsView, Mapping, Sequence

from msgspec import Struct

from batchrun.errors import ErrorKind
from batchrun.limits.answer_sizes import NONE_BEFORE, AnswerSizes
from batchrun.limits.concurrency import InferredConcurrency, InFlight
from batchrun.limits.inferred_rate import InferredRate
from batchrun.limits.pauses import Breaker, Cooldown, Patience
from batchrun.limits.queueing import Throughput
from batchrun.limits.rate import AdvertisedRate, MinuteLimit
from batchrun.limits.verdicts import Limit
from batchrun.records import Largest, Scope
from batchrun.retry.next_step import TIME_OUTS, ScopeHealth


def user_limits(
    most_in_flight: int, requests_per_minute: float | None, tokens_per_minute: float | None
) -> list[Limit]:
    """The user's limits, for a whole run."""
    limits: list[Limit] = [InFlight(most_in_flight)]
    if requests_per_minute is not None:
        limits.append(MinuteLimit("requests", requests_per_minute))
    if tokens_per_minute is not None:
        limits.append(MinuteLimit("tokens", tokens_per_minute))
    return limits


def scope_limits(
    most_in_flight: int, given: Collection[str] = (), adapts_to_s: float | None = None
) -> list[Limit]:
    """The limits of a new scope; `most_in_flight` bounds what is inferred.

    `given`: which of requests and tokens the user limits, instead of the server's headers.
    `adapts_to_s`: the time-out of an attempt, if what is in flight follows the throughput.
    """
    requests, tokens = (
        AdvertisedRate(of, is_replaced=of in given) for of in ("requests", "tokens")
    )
    rate = InferredRate(requests, tokens)
    limits: list[Limit] = [
        Cooldown(rate.is_limit),
        requests,
        tokens,
        InferredConcurrency(most_in_flight),
        rate,  # after those that it looks at
    ]
    if adapts_to_s is not None:
        limits.append(Throughput(most_in_flight, adapts_to_s, requests, tokens))
    return limits


class Part(Struct, frozen=True):
    """One process's part of what servers accept."""

    share: float = 1.0  # above 0
    before: float = 0.0  # that of the processes before it: so that all add up in whole requests
    leads: bool = True  # it measures servers that queue; others follow it, ...
    settle_s: float = 0.0  # ... after this time


class InferredLimits(Struct, frozen=True):
    """What one process has inferred of what a server takes from all of them; null: not known."""

    rate: float | None  # requests a second
    takes: float | None  # requests in flight
    excess: int  # in flight at this process, beyond its part of that
    is_settled: bool  # one of these is more than a guess


class ScopeState:
    """One scope."""

    def __init__(
        self,
        most_in_flight: int,
        patience: Patience,
        largest: Largest,
        given: Collection[str] = (),
        adapts_to_s: float | None = None,
    ) -> None:
        self.health = ScopeHealth()
        self.sizes = AnswerSizes(largest)
        limits = scope_limits(most_in_flight, given, adapts_to_s)
        self._in_flight = next(one for one in limits if isinstance(one, InferredConcurrency))
        self._rate = next(one for one in limits if isinstance(one, InferredRate))
        in_flight = self._in_flight
        self.breaker = Breaker(patience, in_flight.restart, lambda: in_flight.now)
        self.limits: Sequence[Limit] = (self.breaker, *limits)
        self._throughput = next((one for one in limits if isinstance(one, Throughput)), None)
        self._all = limits

    def has_waited(self, kind: ErrorKind) -> bool:
        """Whether an attempt that ended like this only waited for others; fewer are in flight now.

        With a fixed number in flight it would wait as long again; then the row has failed.
        """
        return kind in TIME_OUTS and self._throughput is not None and self._throughput.waits

    def set_part(self, part: Part, now_s: float) -> None:
        """Sets this process's part of what the server accepts."""
        for limit in self._all:
            match limit:
                case AdvertisedRate() | InferredRate():
                    limit.set_part(part.share, now_s)
                case InferredConcurrency():
                    limit.set_part(part.share, part.before)
                case Throughput():
                    limit.set_part(part.share, now_s, part.settle_s, leads=part.leads)

    def rejoin(self) -> None:
        """Others have used what is for this process for a while."""
        self._rate.rejoin()
        self._in_flight.rejoin()

    def follow(
        self,
        cooldown_s: float,
        in_flight: int | None,
        rate: float | None,
        takes: float | None,
        now_s: float,
    ) -> None:
        """What other processes know of it: of one that queues, and as in `InferredLimits`."""
        for limit in self._all:
            match limit:
                case Cooldown() if cooldown_s > 0:
                    limit.follow(cooldown_s, now_s)
                case Throughput() if in_flight is not None:
                    limit.follow(in_flight, now_s)
                case InferredRate() if rate is not None:
                    limit.follow(rate, now_s)
                case InferredConcurrency() if takes is not None:
                    limit.follow(takes, now_s)

    def others_answered(self, at_s: float) -> None:
        """Other processes of this command were answered there, the last time then."""
        self.health.has_succeeded = True
        self.breaker.others_answered(at_s)

    def cooldown_s(self, now_s: float) -> float:
        """How long nothing is sent, from what the server told this process."""
        return sum(one.left_s(now_s) for one in self._all if isinstance(one, Cooldown))

    def found(self, now_s: float) -> InferredLimits:
        """By this process."""
        takes, rate = self._in_flight, self._rate
        return InferredLimits(
            rate=rate.in_all,
            takes=takes.in_all,
            excess=0 if takes.in_all is None else takes.excess,
            is_settled=rate.is_settled(now_s) or takes.is_settled(now_s),
        )

    def in_all(self) -> int | None:
        """In flight with all processes together, as this one measured; None: it did not."""
        return None if self._throughput is None else self._throughput.in_all()


class Scopes:
    """All scopes of a run, each made when it is first seen."""

    def __init__(
        self,
        most_in_flight: int,
        patience: Patience,
        largest: Mapping[str, Largest] | None = None,
        given: Collection[str] = (),
        adapts_to_s: float | None = None,
    ) -> None:
        """`largest`: of earlier commands, by model; the others as for `scope_limits`."""
        self._largest, self._given, self._adapts_to_s = largest or {}, given, adapts_to_s
        self.patience = patience
        self._most_in_flight = most_in_flight
        self._states: dict[Scope, ScopeState] = {}
        self._part: Part | None = None  # None: there is no other process

    def of(self, scope: Scope) -> ScopeState:
        state = self._states.get(scope)
        if state is None:
            state = self._states[scope] = ScopeState(
                self._most_in_flight,
                self.patience,
                self._largest.get(scope.model, NONE_BEFORE),
                self._given,
                self._adapts_to_s,
            )
            if self._part is not None:
                state.set_part(self._part, 0.0)
        return state

    def items(self) -> ItemsView[Scope, ScopeState]:
        return self._states.items()

    def set_part(self, part: Part, now_s: float) -> None:
        """Sets this process's part of what servers accept."""
        if part != self._part:
            self._part = part
            for state in self._states.values():
                state.set_part(part, now_s)

    def rejoin(self) -> None:
        """Others have used what is for this process for a while."""
        for state in self._states.values():
            state.rejoin()

    def limits(self, scope: Scope) -> Sequence[Limit]:
        return self.of(scope).limits
