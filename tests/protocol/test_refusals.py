"""What a refusal is about: one row, everybody's money, the endpoint's state, or a gateway's words.

In plain, stream and background mode; the words of many more servers are in `tests/retry`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.dispatch.attempt_result import AttemptResult, read_reply
from batchrun.errors import ErrorKind, RunStopped, StopCause
from batchrun.job.sections import RetryJob
from batchrun.records import Attempt, Failure, Reply, Request
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Connect = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
K = ErrorKind
MODES = pytest.mark.parametrize("mode", ["plain", "stream", "background"])
FAST = RetryJob(max_wait_s=0.01)
PAGE = b"<html><head><title>Maintenance</title></head></html>"


def _refusal(status: int, message: str, **fields: Any) -> dict[str, Any]:
    return {"status": status, "body": {"error": {"message": message, **fields}}}


ROWS_OWN: dict[str, tuple[dict[str, Any], ErrorKind]] = {
    "moderation": (
        _refusal(403, "m requires moderation. Your input was flagged", code=403),
        K.CONTENT_POLICY,
    ),
    "previous response": (
        _refusal(
            400,
            "Previous response with id 'resp_0f09' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        ),
        K.BAD_REQUEST,
    ),
    "conversation": (_refusal(404, "Conversation with id 'conv_1' not found."), K.BAD_REQUEST),
    "file": (_refusal(404, "No such File object: file-abc", param="id"), K.BAD_REQUEST),
    "vector store": (_refusal(403, "No access to vector store vs_12"), K.BAD_REQUEST),
    "something of the row": (_refusal(404, "Nothing at kb-2026-11-17"), K.BAD_REQUEST),
}


@MODES
@pytest.mark.parametrize("name", ROWS_OWN)
async def test_the_refusal_of_one_row_fails_that_row_alone(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, name: str, mode: str
) -> None:
    step, kind = ROWS_OWN[name]
    body = {"model": "m", "input": "Read kb-2026-11-17"}
    # The first row of a run: a refusal of the key or the model would stop it here.
    async with endpoint([step, {"body": answer()}], mode=mode, retry=FAST) as connected:
        refused = await connected.outcome(request_of(body))
        other = await connected.outcome(request_of(body))
    assert (refused.result.kind, refused.result.status) == (kind, "failed")
    assert (len(refused.attempts), other.ok) == (1, True)
    assert refused.cost_usd == 0


ACCOUNTS_OWN = {
    "a key that may not": _refusal(403, "Your key has no access to this"),
    "an account that was shut": _refusal(403, "Your account was flagged for its content policy"),
    "a model": _refusal(404, "The model `m` does not exist", param="model"),
    "litellm's model": _refusal(
        400, "/responses: Invalid model name passed in model=m. Call `/v1/models`", code="400"
    ),
    "a path": _refusal(404, "Invalid URL (POST /v1/responses)"),
}


@MODES
@pytest.mark.parametrize("name", ACCOUNTS_OWN)
async def test_a_refusal_that_every_row_would_meet_stops_the_run_and_is_quoted(
    complete: Complete, name: str, mode: str
) -> None:
    step = ACCOUNTS_OWN[name]
    with pytest.raises(RunStopped) as stopped:
        await complete([step], mode=mode)
    assert stopped.value.cause is StopCause.KEY
    assert step["body"]["error"]["message"] in str(stopped.value)


MONEY = {
    "Anthropic": _refusal(400, "Your credit balance is too low to access the Anthropic API."),
    "DeepSeek": _refusal(402, "Insufficient Balance", code="invalid_request_error"),
    "xAI": {"status": 403, "body": {"code": "x", "error": "used all available credits"}},
    "Fireworks": _refusal(412, "Account a is suspended, possibly due to failure to pay invoices"),
    "Moonshot": _refusal(429, "organization exceeded", type="exceeded_current_quota_error"),
    "Alibaba": {"status": 400, "body": {"code": "Arrearage", "message": "Access denied"}},
    "litellm": _refusal(400, "Budget has been exceeded! Current cost: 14.1, Max budget: 10.0"),
    "a reseller": _refusal(400, "账户余额不足"),
    "in a 200": _refusal(200, "Insufficient credits", code=402),
}


@MODES
@pytest.mark.parametrize("name", MONEY)
async def test_money_that_is_gone_stops_the_run_at_once_and_settles_nothing(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, name: str, mode: str
) -> None:
    step = MONEY[name]
    async with endpoint([{"body": answer()}, step], mode=mode, retry=FAST) as connected:
        assert (await connected.outcome(request_of())).ok
        with pytest.raises(RunStopped) as stopped:
            await connected.outcome(request_of())
        assert connected.gate.in_flight == 0
    assert stopped.value.cause is StopCause.QUOTA
    said = step["body"].get("error", step["body"])
    assert (said if isinstance(said, str) else said["message"]) in str(stopped.value)
    assert len(connected.server.requests) == 2


async def test_money_that_only_the_row_speaks_of_stops_nothing(complete: Complete) -> None:
    prompt = 'the bank says "insufficient balance", then {"code": "insufficient_quota"}'
    step = _refusal(400, f"1 validation error: input_value='{prompt}', input_type=str")
    outcome = await complete([step], {"model": "m", "input": prompt})
    assert outcome.result.kind is K.BAD_REQUEST


LIMITED = {
    "Gemini": {
        "status": 429,
        "body": [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota, please check your plan and "
                    "billing details.\n* Quota exceeded for metric: x, limit: 15",
                    "status": "RESOURCE_EXHAUSTED",
                }
            }
        ],
    },
    "Alibaba": _refusal(
        429,
        "You exceeded your current quota, please check your plan. See error-code#token-limit",
        code="insufficient_quota",
    ),
    "AWS": {"status": 400, "body": {"__type": "ThrottlingException", "message": "x"}},
    "AWS's header": {
        "status": 400,
        "body": {"message": "Too many tokens, please wait before trying again."},
        "headers": {"x-amzn-ErrorType": "ThrottlingException:http://internal.amazon.com/x"},
    },
    "Cloudflare": {
        "status": 401,
        "body": {"error": [{"code": 2009, "message": "Unauthorized"}], "name": "AiGatewayError"},
    },
    "400 in words": _refusal(400, "upstream says: rate limit exceeded"),
    "401 by type": _refusal(401, "slow down", type="rate_limit_error"),
    "403 by number": _refusal(403, "slow down", code=429),
}


@MODES
@pytest.mark.parametrize("name", LIMITED)
async def test_a_limit_in_another_status_is_waited_out_like_any_limit(
    complete: Complete, answer: Make, name: str, mode: str
) -> None:
    script = [LIMITED[name]] * 3 + [{"body": answer()}]
    retry = RetryJob(max_attempts=4, max_wait_s=0.01)
    outcome = await complete(script, mode=mode, retry=retry)
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert (kinds, outcome.ok) == ([K.RATE_LIMIT] * 3 + [None], True)


async def test_a_limit_said_with_401_that_lets_nothing_through_is_a_refused_key(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    step, retry = LIMITED["Cloudflare"], RetryJob(max_attempts=3, max_wait_s=0.01)
    async with endpoint([step], retry=retry) as connected:
        with pytest.raises(RunStopped, match=r"Unauthorized .*the key is refused"):
            await connected.outcome(request_of())
        assert len(connected.server.requests) == 3
    # Once the key has served, it is a limit, however often it is said.
    script = [{"body": answer()}] + [step] * 5 + [{"body": answer()}]
    async with endpoint(script, retry=retry) as connected:
        assert (await connected.outcome(request_of())).ok
        assert (await connected.outcome(request_of())).ok


PASSING = {421: K.BUSY, 423: K.BUSY, 424: K.SERVER_ERROR, 460: K.SERVER_ERROR, 498: K.OVERLOADED}


@MODES
@pytest.mark.parametrize("status", [*PASSING, 499])
async def test_a_passing_error_in_a_rare_status_is_retried(
    complete: Complete, answer: Make, status: int, mode: str
) -> None:
    # With a code of its own, and the same each time: the server behind the gateway is down.
    step = _refusal(status, "because", code="failed_dependency")
    script = [step] * 5 + [{"body": answer()}]
    outcome = await complete(script, mode=mode, retry=FAST)
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [PASSING.get(status, K.SERVER_ERROR)] * 5 + [None]


PAGES = {
    "a page": {"body": PAGE},
    "nothing": {"body": b""},
    "a firewall's page": {"status": 403, "body": PAGE},
    "a short page": {"status": 403, "body": b"error code: 1010"},
}


@pytest.mark.parametrize(
    "name",
    [
        *("a page", "a short page"),
        *(pytest.param(one, marks=pytest.mark.long) for one in ("nothing", "a firewall's page")),
    ],
)
async def test_a_wave_of_pages_or_of_nothing_is_an_outage_and_loses_no_row(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, name: str
) -> None:
    good = {"body": answer()}
    # Three attempts of each row would be 36: it is the outage that costs them nothing.
    script = [good] + [PAGES[name]] * 20 + [good]
    async with endpoint(script, retry=RetryJob()) as connected:

        async def is_ok(row: int) -> bool:
            completed = await connected.dispatcher.complete(request_of(row=row))
            if completed.slot is not None:
                connected.gate.leave(completed.slot, completed.finish)
            return bool(completed.outcome.ok)

        assert await is_ok(0)
        async with asyncio.timeout(HANG_S):
            assert all(await asyncio.gather(*map(is_ok, range(1, 13))))


def test_an_answer_that_was_paid_for_and_cannot_be_read_is_no_outage(
    request_of: Callable[..., Request],
) -> None:
    def told(body: bytes) -> str | None:
        reply = Reply(200, body, None, None, None)
        failure = read_reply(reply, request_of())
        assert isinstance(failure, Failure)
        return (
            AttemptResult(failure, failure, Attempt(0, 0.1, "first"), reply).finish().endpoint_error
        )

    assert told(b'{"object":"chat.completion","choices":[]}') is None
    assert told(b'{"id":') is None
    assert told(PAGE)
    assert told(b" ")


@MODES
async def test_a_gateways_own_words_win(complete: Complete, answer: Make, mode: str) -> None:
    words = {"rate_limit": ("Pool Drained",), "quota": ("wallet", "cost centre closed")}
    retry = RetryJob(max_attempts=1, max_wait_s=0.01, words=words)
    drained = _refusal(400, "the pool drained; invalid api key", code="invalid_api_key")
    outcome = await complete([drained, {"body": answer()}], mode=mode, retry=retry)
    assert [attempt.error_kind for attempt in outcome.attempts] == [K.RATE_LIMIT, None]
    with pytest.raises(RunStopped, match="Cost centre closed") as stopped:
        await complete([_refusal(418, "Cost centre closed")], mode=mode, retry=retry)
    assert stopped.value.cause is StopCause.QUOTA
    # Also of work that has begun: the next command asks for it again.
    begun = {"body": answer(status="queued", output=[])}
    if mode == "background":
        with pytest.raises(RunStopped, match="Cost centre closed") as stopped:
            await complete([begun, _refusal(418, "Cost centre closed")], mode=mode, retry=retry)
        assert stopped.value.cause is StopCause.QUOTA
    # Also where it answers with text and 200.
    with pytest.raises(RunStopped, match="WALLET"):
        await complete([{"body": b"your WALLET is empty"}], mode=mode, retry=retry)
