"""A limit by the hour that is used up holds the run until the hour is over, and no longer."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from batchrun.records import Finish
from tests.pacing.client import play
from tests.pacing.server_model import HEADERS, Plan, Server

HOUR_S = 3600.0
PLAN = Plan(window_s=HOUR_S, said_s=HOUR_S, is_named=True, hints=HEADERS, latency_s=0.2)


class InTheHour(Server):
    """Of its hour, so much time and so much of the limit are left when the run begins."""

    def __init__(self, plan: Plan, left_s: float, remaining: float, *, hints: bool) -> None:
        super().__init__(plan, 1)
        self._gone_s, self._hints = HOUR_S - left_s, hints
        for meter in self._meters:
            meter.at_s, meter.level = self._gone_s, remaining

    def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
        latency_s, finish = super().take(tokens, now_s + self._gone_s)
        return latency_s, finish if self._hints else changed(finish, hint_s=None)


@pytest.mark.parametrize("of", ["requests", "tokens"])
def test_an_hours_limit_that_is_full_again_in_five_seconds_holds_for_five_seconds(of: str) -> None:
    if of == "requests":
        server = InTheHour(replace(PLAN, requests=100 / HOUR_S), 5.0, 1.0, hints=True)
    else:
        server = InTheHour(replace(PLAN, tokens=300_000 / HOUR_S), 5.0, 3_000.0, hints=True)
    traffic = play(server, ((3_000, 3_000),) * 40, most=8)
    assert sum(traffic.accepted) == 40
    assert traffic.between(traffic.accepted, 1.0, 4.5) == 0  # the rate of what remains is none
    assert traffic.end_s < 20.0
    assert sum(traffic.refused) <= 1


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("left_s", [3500.0, 60.0])
def test_refusals_in_an_hour_that_is_used_up_add_nothing_to_the_wait(
    left_s: float, hints: bool
) -> None:
    server = InTheHour(replace(PLAN, requests=100 / HOUR_S), left_s, 60.0, hints=hints)
    traffic = play(server, ((0, 0),) * 100, most=64)
    assert sum(traffic.accepted) == 100
    assert traffic.end_s < left_s + 120.0
