import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.retry.error_kinds import ErrorBody, parse_error


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            {"error": {"message": "m", "type": "t", "param": None, "code": None}},
            ErrorBody("m", None, "t"),
        ),
        ({"error": {"message": "m", "type": "t", "code": 400}}, ErrorBody("m", "400", "t")),
        ({"detail": "Not Found"}, ErrorBody("Not Found")),
        (
            {"detail": [{"loc": ["body", 0], "msg": "x", "type": "t"}, {"msg": "y"}]},
            ErrorBody("body.0: x; y"),
        ),
        ({"detail": [{"loc": ["body"]}]}, ErrorBody('[{"loc":["body"]}]')),
        (
            {"type": "error", "code": "c", "message": "m", "error": {"type": "t"}},
            ErrorBody("m", "c", "t"),
        ),
        (
            {"type": "https://x/error-524/", "title": "A timeout", "status": 524},
            ErrorBody("A timeout", None, "https://x/error-524/"),
        ),
        ({"success": False, "message": "m"}, ErrorBody("m")),
        ({"error": "text"}, ErrorBody("text")),
        ({"msg": "m"}, ErrorBody("m")),
        ({"error_msg": "m"}, ErrorBody("m")),
        ({"response": {"error": {"message": "m", "code": "c"}}}, ErrorBody("m", "c")),
    ],
)
def test_each_shape_of_an_error_body_gives_its_message(body: Any, answer: ErrorBody) -> None:
    assert parse_error(json.dumps(body).encode()) == answer


def test_text_html_and_nothing_give_a_message_too() -> None:
    assert parse_error(b"Internal Server Error") == ErrorBody("Internal Server Error")
    assert parse_error(b" <html>sorry</html>") == ErrorBody("sorry", is_html=True)
    page = b"<!DOCTYPE html><head><title>502 Bad\n Gateway</title></head><body>x &amp; y</body>"
    assert parse_error(page).message == "502 Bad Gateway"
    page = b"<style>b{}</style><b>x &amp;</b><script>1<2</script> y<br>"
    assert parse_error(page).message == "x & y"
    assert parse_error(b"").message == "the answer had no body"


@given(st.binary())
def test_any_bytes_give_a_message(body: bytes) -> None:
    assert parse_error(body).message
