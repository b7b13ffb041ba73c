import pytest

from batchrun.endpoint.headers import reported_cost_usd, request_id, retry_after_s

NOW_S = 1_445_412_470.0  # Wed, 21 Oct 2015 07:27:50 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "150", "retry-after": "9"}, 0.15),
        ({"llm_provider-retry-after": "3"}, 3.0),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "soon", "llm_provider-retry-after": "3"}, 3.0),
    ],
)
def test_every_form_of_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW_S) == seconds


def test_the_id_to_quote_to_support_is_found_under_its_many_names() -> None:
    assert request_id({"x-request-id": "a", "cf-ray": "b"}) == "a"
    assert request_id({"apim-request-id": "c"}) == "c"
    assert request_id({}) is None


def test_a_gateways_cost_is_read() -> None:
    assert reported_cost_usd({"x-litellm-response-cost": "0.0012"}) == 0.0012
    assert reported_cost_usd({"x-litellm-response-cost": "None"}) is None
