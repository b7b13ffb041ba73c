"""What servers and gateways really say, and the kind of each: `server_sayings.jsonl`, line by line.

Each line has who says it, the HTTP status, the body, and the kind that it must get.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Request
from batchrun.retry.error_kinds import classify, parse_error

_LINES = (Path(__file__).parent / "server_sayings.jsonl").read_text("utf-8").splitlines()
SAYINGS: list[dict[str, Any]] = [json.loads(line) for line in _LINES]
# A row that speaks of all this itself, and names objects of its own.
_PROMPT = (
    "Classify the ticket: insufficient balance on my card, error: rate limit exceeded, and then "
    '{"code": "insufficient_quota"} and no such model https://x.example/cat-2026.png '
    "kb-2026-11-17-invoices"
)
REQUEST = Request(
    row=0,
    custom_id="0",
    source="f",
    body=json.dumps({"model": "m-2026-10", "input": _PROMPT}).encode(),
    hash="0" * 16,
    model="m-2026-10",
    max_output_tokens=None,
    carried=(),
)


def _kind(status: int, body: Any) -> ErrorKind:
    error = parse_error(body.encode() if isinstance(body, str) else json.dumps(body).encode())
    return classify(
        status,
        error.code,
        error.type,
        error.message,
        param=error.param,
        is_html=error.is_html,
        asked=REQUEST,
    )


@pytest.mark.parametrize("said", SAYINGS, ids=[f"{said['kind']} {said['who']}" for said in SAYINGS])
def test_what_a_server_says_has_its_kind(said: dict[str, Any]) -> None:
    assert _kind(said["status"], said["body"]).value == said["kind"]


@pytest.mark.parametrize(
    "message",
    [
        f"1 validation error: input [input_value='{_PROMPT[:45]}', input_type=str]",
        f"cannot read: {_PROMPT}",
        f"400: {{'error': '{_PROMPT}'}}",
        'cannot read: {"code": "insufficient_quota"} and no such model',
    ],
)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.BAD_REQUEST),
        (422, ErrorKind.BAD_REQUEST),
        (403, ErrorKind.CONTENT_POLICY),
        (500, ErrorKind.SERVER_ERROR),
    ],
)
def test_words_of_the_row_itself_in_a_message_prove_nothing(
    status: int, message: str, kind: ErrorKind
) -> None:
    said = f"flagged: {message}" if status == 403 else message
    assert _kind(status, {"error": {"message": said}}) is kind
    problem = {"loc": ["body", "input"], "msg": said, "type": "x"}
    assert _kind(status, {"detail": [problem]}) is kind


def test_only_the_beginning_of_a_message_and_no_message_about_a_parameter_stops_a_run() -> None:
    far = {"detail": "x" * 700 + " your account has an insufficient balance"}
    assert _kind(403, far) is ErrorKind.FORBIDDEN
    error = {"message": "the balance is insufficient", "param": "tools[0].name"}
    assert _kind(400, {"error": error}) is ErrorKind.BAD_REQUEST


def test_the_header_of_aws_names_the_type_too() -> None:
    said = "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/"
    assert classify(400, None, said, "Too many tokens") is ErrorKind.RATE_LIMIT
