"""What is known of each scope: its limits, its health, and what its answers need. Pure."""

from collections.abc import Mapping, Sequence

from batchrun.policy.breaker import Breaker
from batchrun.policy.concurrency import LearntInFlight
from batchrun.policy.pace import scope_limits
from batchrun.policy.retry import ScopeHealth
from batchrun.policy.sizes import NONE_BEFORE, AnswerSizes
from batchrun.policy.verdicts import Limit
from batchrun.records import Largest, Scope


class ScopeState:
    """One scope."""

    def __init__(self, most_in_flight: int, give_up_after_s: float, largest: Largest) -> None:
        self.health = ScopeHealth()
        self.sizes = AnswerSizes(largest)
        limits = scope_limits(most_in_flight)
        learnt = next(limit for limit in limits if isinstance(limit, LearntInFlight))
        self.breaker = Breaker(give_up_after_s, learnt.restart)
        self.limits: Sequence[Limit] = (self.breaker, *limits)


class Scopes:
    """All scopes of a run, each made when it is first seen."""

    def __init__(
        self,
        most_in_flight: int,
        give_up_after_s: float,
        largest: Mapping[str, Largest] | None = None,
    ) -> None:
        """`largest`: by model, of the answers to earlier commands."""
        self._largest = largest or {}
        self.give_up_after_s = give_up_after_s
        self._most_in_flight = most_in_flight
        self._states: dict[Scope, ScopeState] = {}

    def of(self, scope: Scope) -> ScopeState:
        state = self._states.get(scope)
        if state is None:
            state = self._states[scope] = ScopeState(
                self._most_in_flight,
                self.give_up_after_s,
                self._largest.get(scope.model, NONE_BEFORE),
            )
        return state

    def limits(self, scope: Scope) -> Sequence[Limit]:
        return self.of(scope).limits
