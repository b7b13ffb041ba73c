import pytest

from batchrun.errors import ErrorKind
from batchrun.retry.error_kinds import classify, hint_in


@pytest.mark.parametrize(
    ("status", "code", "error_type", "message", "kind"),
    [
        (429, "insufficient_quota", "insufficient_quota", "", ErrorKind.QUOTA),
        (
            429,
            "429",
            "throttling_error",
            '{"error":{"code":"insufficient_quota"}}',
            ErrorKind.QUOTA,
        ),
        (403, "insufficient_user_quota", "new_api_error", "用户额度不足", ErrorKind.QUOTA),
        (401, "", "new_api_error", "该令牌额度已用尽", ErrorKind.QUOTA),
        (402, None, None, "", ErrorKind.QUOTA),
        (429, "rate_limit_exceeded", "tokens", "Please try again in 9.8s", ErrorKind.RATE_LIMIT),
        (429, None, None, "the answer had no body", ErrorKind.RATE_LIMIT),
        (503, "slow_down", None, "", ErrorKind.RATE_LIMIT),
        (503, "server_is_overloaded", None, "", ErrorKind.OVERLOADED),
        (503, "model_not_found", "new_api_error", "no channel", ErrorKind.OVERLOADED),
        (404, "model_not_found", "invalid_request_error", "", ErrorKind.NOT_FOUND),
        (401, "invalid_api_key", "invalid_request_error", "", ErrorKind.UNAUTHORIZED),
        (403, None, None, "", ErrorKind.FORBIDDEN),
        (400, None, "invalid_request_error", "", ErrorKind.BAD_REQUEST),
        (400, "context_length_exceeded", "invalid_request_error", "", ErrorKind.TOO_LONG),
        (413, None, None, "", ErrorKind.TOO_LONG),
        (400, "content_policy_violation", None, "", ErrorKind.CONTENT_POLICY),
        (500, "convert_request_failed", "new_api_error", "", ErrorKind.BAD_REQUEST),
        (500, None, "server_error", "", ErrorKind.SERVER_ERROR),
        (502, None, None, "<html>", ErrorKind.SERVER_ERROR),
        (520, "bad_response_status_code", "upstream_error", "", ErrorKind.SERVER_ERROR),
        (504, None, None, "", ErrorKind.GATEWAY_TIMEOUT),
        (524, None, None, "", ErrorKind.GATEWAY_TIMEOUT),
        (529, None, None, "", ErrorKind.OVERLOADED),
        (408, None, None, "", ErrorKind.BUSY),
        (409, None, None, "", ErrorKind.BUSY),
        (301, None, None, "", ErrorKind.REDIRECT),
        (200, None, "server_error", "", ErrorKind.SERVER_ERROR),
        (200, "429", None, "", ErrorKind.RATE_LIMIT),
        (200, None, "invalid_request_error", "", ErrorKind.BAD_REQUEST),
        (422, None, None, "", ErrorKind.BAD_REQUEST),
        (501, "api_not_implemented", None, "", ErrorKind.NOT_FOUND),
    ],
)
def test_code_comes_before_type_before_message_before_status(
    status: int, code: str | None, error_type: str | None, message: str, kind: ErrorKind
) -> None:
    assert classify(status, code, error_type, message) is kind


def test_a_firewalls_html_is_no_refused_key() -> None:
    assert classify(403, None, None, "<html>", is_html=True) is ErrorKind.FIREWALL


def test_a_request_above_the_whole_limit_is_not_helped_by_waiting() -> None:
    over = "Request too large for gpt (TPM): Limit 30000, Requested 36278."
    below = "Request too large for gpt (TPM): Limit 30000, Requested 546."
    assert classify(429, "rate_limit_exceeded", "tokens", over) is ErrorKind.OVER_LIMIT
    assert classify(429, "rate_limit_exceeded", "tokens", below) is ErrorKind.RATE_LIMIT


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Limit 30000, Used 28770, Requested 3082. Please try again in 9.816s.", 9.816),
        ("Please try again in 20ms. Visit", 0.02),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 1h2m3s.", 3723.0),
        ("Please retry after 6 seconds.", 6.0),
        ("Please retry after 1 second.", 1.0),
        ("Please retry your request later", None),
        ("", None),
    ],
)
def test_the_words_of_a_message_may_hold_the_hint(message: str, seconds: float | None) -> None:
    assert hint_in(message) == seconds
