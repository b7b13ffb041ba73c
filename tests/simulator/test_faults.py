import json
from collections import Counter

import pytest

from batchrun.simulator.errors import fault_error
from batchrun.simulator.faults import FaultSampler, equivalent_fault, takes_work
from batchrun.simulator.settings import SPREAD, Fault, SimulatorSettings


def _drawn(
    behavior: SimulatorSettings, bodies: int = 4_000, attempt: int = 0
) -> Counter[Fault | None]:
    sampler = FaultSampler(behavior)
    return Counter(sampler.draw(str(body).encode(), attempt) for body in range(bodies))


def test_no_fault_is_met_where_none_is_asked_for() -> None:
    assert _drawn(SimulatorSettings()) == {None: 4_000}


def test_faults_come_at_their_rates() -> None:
    drawn = _drawn(SimulatorSettings(faults=0.3, fault_rates={"quota": 0.1}))
    assert 2_300 < drawn[None] < 2_500
    assert 340 < drawn[Fault.QUOTA] < 460
    assert all(50 < drawn[fault] < 115 for fault in SPREAD)


def test_rates_that_add_up_to_1_leave_nothing_whole() -> None:
    assert None not in _drawn(SimulatorSettings(faults=1))


def test_the_same_attempt_meets_the_same_fault_and_a_retry_draws_anew() -> None:
    sampler = FaultSampler(SimulatorSettings(faults=0.5))
    first = [sampler.draw(b"body", attempt) for attempt in range(50)]
    assert first == [sampler.draw(b"body", attempt) for attempt in range(50)]
    assert len(set(first)) > 5
    other = FaultSampler(SimulatorSettings(faults=0.5, seed=1))
    assert first != [other.draw(b"body", attempt) for attempt in range(50)]


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_errors_come_as_json_html_and_nothing(status: int) -> None:
    as_json = fault_error(Fault(f"{status}_json"), 1)
    as_html = fault_error(Fault(f"{status}_html"), 1)
    empty = fault_error(Fault(f"{status}_empty"), 1)
    assert as_json
    assert as_html
    assert empty
    assert as_json.status == as_html.status == empty.status == status
    assert json.loads(as_json.body)["error"]["message"]
    assert as_html.content_type == "text/html"
    assert as_html.body.startswith(b"<html>")
    assert empty.body == b""


def test_a_429_says_when_to_come_back_or_does_not() -> None:
    hinting, bare = fault_error(Fault.RATE_LIMIT_HINT, 2.5), fault_error(Fault("429_bare"), 2.5)
    assert hinting
    assert bare
    assert hinting.headers == {"Retry-After": "3", "retry-after-ms": "2500"}
    assert b"try again in 2.5s" in hinting.body
    assert bare.headers == {}
    assert b"again" not in bare.body


def test_used_up_quota_and_an_error_with_200_are_said_in_the_body() -> None:
    quota, error = fault_error(Fault.QUOTA, 1), fault_error(Fault.ERROR_200, 1)
    assert quota
    assert error
    assert (quota.status, json.loads(quota.body)["error"]["code"]) == (429, "insufficient_quota")
    assert (error.status, json.loads(error.body)["error"]["code"]) == (200, "server_error")


def test_every_kind_is_an_error_or_strikes_the_wire_or_the_answer() -> None:
    strikes = [fault for fault in Fault if fault_error(fault, 1) is None]
    assert {fault for fault in strikes if not fault.startswith("stream_")} == {
        Fault.RESET_BEFORE,
        Fault.RESET_WITHIN,
        Fault.TRUNCATED_JSON,
        Fault.NO_HEADERS,
        Fault.ENDLESS_BODY,
        Fault.STALLED_BODY,
        Fault.FAILED,
        Fault.FAILED_PROMPT,
        Fault.CONTENT_FILTER,
    }


def test_each_error_has_the_status_that_it_is_named_after() -> None:
    for fault in Fault:
        answer = fault_error(fault, 1)
        if answer is not None and fault[:3].isdigit():
            assert answer.status == int(fault[:3])


def test_a_refusal_takes_no_work() -> None:
    assert not takes_work(Fault.RATE_LIMIT_EMPTY)
    assert not takes_work(Fault.QUOTA)
    assert takes_work(Fault.CLOUDFLARE_TIMEOUT)


def test_a_fault_comes_to_the_same_whether_streamed_or_not() -> None:
    assert equivalent_fault(Fault.RESET_WITHIN, streams=True) is Fault.STREAM_RESET
    assert equivalent_fault(Fault.TRUNCATED_JSON, streams=True) is Fault.STREAM_END
    for fault in Fault:
        assert not equivalent_fault(fault, streams=False).startswith("stream_")
        if not fault.startswith("stream_"):
            assert equivalent_fault(fault, streams=False) is fault
