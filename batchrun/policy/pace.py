"""Limits put together: what the user allows, and for a scope what its server says and is learnt."""

from batchrun.policy.concurrency import InFlight, LearntInFlight
from batchrun.policy.cooldown import Cooldown
from batchrun.policy.learnt_rate import LearntRate
from batchrun.policy.rate import MinuteLimit, ToldRate
from batchrun.policy.verdicts import Limit


def user_limits(
    most_in_flight: int, requests_per_minute: float | None, tokens_per_minute: float | None
) -> list[Limit]:
    """For a whole run."""
    limits: list[Limit] = [InFlight(most_in_flight)]
    if requests_per_minute is not None:
        limits.append(MinuteLimit("requests", requests_per_minute))
    if tokens_per_minute is not None:
        limits.append(MinuteLimit("tokens", tokens_per_minute))
    return limits


def scope_limits(most_in_flight: int) -> list[Limit]:
    """For a new scope; `most_in_flight` bounds what is learnt."""
    requests, tokens = ToldRate("requests"), ToldRate("tokens")
    return [
        Cooldown(),
        requests,
        tokens,
        LearntInFlight(most_in_flight),
        LearntRate(requests, tokens),  # after those it asks
    ]
