"""What counts as an answer, and which of its fields may be missing (PROTOCOL 0.1 to 0.3, A.3)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind, RunStopped
from batchrun.records import Failure, Response, Usage

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "bare",
    [
        {"object": "response", "status": "completed"},
        {"output": []},
        {"output": [], "status": "completed", "error": None, "usage": None},
        {"object": "response", "status": "completed", "error": {}, "created_at": 1.5, "id": 7},
        {"object": "response", "status": "completed", "tools": "?", "usage": "?", "model": [1]},
    ],
)
async def test_an_answer_needs_no_more_than_to_call_itself_one(
    complete: Complete, bare: dict[str, Any]
) -> None:
    outcome = await complete([{"body": bare}])
    assert (outcome.result.status, len(outcome.attempts)) == ("completed", 1)
    assert (outcome.result.output, outcome.result.usage) == ("[]", Usage())
    assert (outcome.ok, outcome.failure.kind) == (False, ErrorKind.EMPTY_OUTPUT)
    outcome = await complete([{"body": {**bare, "output_text": "forty-two"}}])
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")


async def test_unknown_fields_and_echoes_that_do_not_match_are_accepted(
    complete: Complete, answer: Make
) -> None:
    strange = answer(
        created_at=1_756_108_120.25,
        content_filters=None,
        model="m-other",
        tools=[{"type": "function", "name": "never_asked_for"}],
        instructions="another's",
        cost="free",
        moderation={"x": [None]},
    )
    outcome = await complete([{"body": strange}], {"model": "m", "input": "x", "tools": []})
    assert outcome.ok
    assert (outcome.result.model, outcome.request.model) == ("m-other", "m")


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_an_error_in_a_200_is_a_failure(complete: Complete, answer: Make, mode: str) -> None:
    error = {"error": {"message": "oops", "type": "upstream_error", "code": "503"}}
    outcome = await complete([{"body": error}, {"body": answer()}], mode=mode)
    first = outcome.attempts[0]
    assert (first.http_status, first.error_message) == (200, "oops")
    assert first.error_kind is ErrorKind.OVERLOADED  # as the status in its code says
    assert outcome.ok
    half = answer(error={"code": "invalid_prompt", "message": "no"})
    outcome = await complete([{"body": half}], mode=mode)
    assert isinstance(outcome.result, Failure)
    assert outcome.result.kind is ErrorKind.CONTENT_POLICY


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"resp_1","object":"response","outp',
        b"<!DOCTYPE html><html><title>Welcome</title></html>",
        b"OK",
        b"",
        b'"OK"',
        b"[]",
        b'{"id":"chatcmpl-1","object":"chat.completion","choices":[]}',
        b'{"object":"response","status":"in_progress","output":[]}',
    ],
)
async def test_what_is_no_answer_in_a_200_is_retried_twice(
    complete: Complete, answer: Make, body: bytes
) -> None:
    outcome = await complete([{"body": body}, {"body": body}, {"body": answer()}])
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [ErrorKind.UNREADABLE, ErrorKind.UNREADABLE, None]
    outcome = await complete([{"body": body}])
    assert outcome.result.status == "no_answer"
    assert len(outcome.attempts) == 3


async def test_nan_and_lone_surrogates_do_not_lose_an_answer(
    complete: Complete, answer: Make
) -> None:
    body = json.dumps(answer("\ud83d!", top_p=float("nan"))).encode()
    for mode in ("plain", "stream"):
        outcome = await complete([{"body": body}], mode=mode)
        assert outcome.result.output_text == "\ufffd!"


@pytest.mark.parametrize(
    ("reason", "truncated"),
    [
        ("max_output_tokens", True),
        ("content_filter", False),
        ("max_messages", False),
        ("steered", False),
        ("some_new_reason", False),
    ],
)
async def test_an_incomplete_answer_is_kept_and_not_asked_for_again(
    complete: Complete, answer: Make, reason: str, truncated: bool
) -> None:
    cut = answer(status="incomplete", output=[], incomplete_details={"reason": reason})
    outcome = await complete([{"body": cut}])
    result = outcome.result
    assert (result.status, result.incomplete_reason, result.truncated) == (
        "incomplete",
        reason,
        truncated,
    )
    assert (outcome.ok, len(outcome.attempts)) == (False, 1)
    assert (result.usage.output_tokens, result.output_text) == (18, None)


@pytest.mark.parametrize(("most", "truncated"), [(17, True), (18, True), (19, False)])
async def test_an_answer_as_long_as_its_limit_is_truncated_though_called_completed(
    complete: Complete, answer: Make, most: int, truncated: bool
) -> None:
    body = {"model": "m", "input": "x", "max_output_tokens": most}
    outcome = await complete([{"body": answer()}], body)
    assert outcome.result.status == "completed"
    assert outcome.result.truncated is truncated
    assert outcome.ok is not truncated


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", ErrorKind.SERVER_ERROR),
        ("rate_limit_exceeded", ErrorKind.RATE_LIMIT),
        ("vector_store_timeout", ErrorKind.SERVER_ERROR),
        ("failed_to_download_image", ErrorKind.SERVER_ERROR),
    ],
)
async def test_a_failed_response_is_retried_where_that_may_help(
    complete: Complete, answer: Make, code: str, kind: ErrorKind
) -> None:
    failed = answer(status="failed", output=[], error={"code": code, "message": "oops"})
    outcome = await complete([{"body": failed}, {"body": answer()}])
    assert outcome.ok
    assert outcome.attempts[0].error_kind is kind
    assert outcome.attempts[0].input_tokens == 62  # it may be billed


@pytest.mark.parametrize(
    "code",
    [
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "misalignment_policy_violation",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "image_file_not_found",
    ],
)
async def test_a_failed_response_that_the_request_caused_is_not_retried(
    complete: Complete, answer: Make, code: str
) -> None:
    failed = answer(status="failed", output=[], error={"code": code, "message": "oops"})
    outcome = await complete([{"body": failed}])
    assert isinstance(outcome.result, Response)
    assert (outcome.result.status, len(outcome.attempts)) == ("failed", 1)
    failure = outcome.result.failure
    assert failure is not None
    assert (failure.code, failure.message) == (code, "oops")


@pytest.mark.parametrize("error", [None, "oops", {"type": "oops"}, {"message": None}, 5])
async def test_a_failed_response_without_a_code_is_retried_to_the_end(
    complete: Complete, answer: Make, error: Any
) -> None:
    failed = answer(status="failed", output=[], error=error)
    outcome = await complete([{"body": failed}, {"body": failed}, {"body": answer()}])
    assert outcome.ok
    assert len(outcome.attempts) == 3


async def test_a_cancelled_response_is_an_end_of_its_own(complete: Complete, answer: Make) -> None:
    outcome = await complete([{"body": answer(status="cancelled")}])
    assert (outcome.result.status, len(outcome.attempts), outcome.ok) == ("cancelled", 1, False)


async def test_the_type_of_a_failed_responses_error_counts_where_its_code_is_missing(
    complete: Complete, answer: Make
) -> None:
    for code in (None, "some_new_code"):
        error = {"code": code, "type": "insufficient_quota", "message": "no money"}
        with pytest.raises(RunStopped, match="no money"):
            await complete([{"body": answer(status="failed", error=error)}])


async def test_the_text_that_some_servers_send_besides_is_not_doubled_nor_lost(
    complete: Complete, answer: Make
) -> None:
    both = await complete([{"body": answer(output_text="forty-two")}])
    assert both.result.output_text == "forty-two"
    alone = await complete([{"body": answer(output=[], output_text="forty-two")}])
    assert alone.result.output_text == "forty-two"
    none = await complete([{"body": answer(output=[], output_text="")}])
    assert none.result.output_text is None


@pytest.mark.parametrize(
    ("usage", "known"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, Usage()),  # beside text
        (
            {
                "input_tokens": 5,
                "input_tokens_details": None,
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": None},
                "total_tokens": None,
            },
            Usage(input_tokens=5, output_tokens=7),
        ),
        (
            {
                "input_tokens": 5.0,
                "input_tokens_details": {
                    "cached_tokens": 1,
                    "cache_write_tokens": 2,
                    "cache_write_tokens_details": {"ttl_30m_tokens": 2},
                },
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 3},
                "total_tokens": 12,
                "cost": 0.25,
            },
            Usage(5, 1, 2, 7, 3, 12),
        ),
    ],
)
async def test_usage_may_be_whole_in_part_or_missing(
    complete: Complete, answer: Make, usage: Any, known: Usage
) -> None:
    outcome = await complete([{"body": answer(usage=usage)}])
    assert outcome.result.usage == known
    said = outcome.result.usage_json
    assert (None if said is None else json.loads(said)) == usage
    assert outcome.result.reported_cost_usd == (usage or {}).get("cost")


async def test_usage_of_hosted_tools_and_the_tier_really_used_are_kept(
    complete: Complete, answer: Make
) -> None:
    tools = {"web_search": {"num_requests": 3}, "image_gen": {"total_tokens": 9}}
    body = {"model": "m", "input": "x", "service_tier": "fast"}
    outcome = await complete([{"body": answer(tool_usage=tools, service_tier="priority")}], body)
    assert json.loads(outcome.result.usage_json)["tool_usage"] == tools
    assert outcome.result.service_tier == "priority"
