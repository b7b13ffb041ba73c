import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.parse.error_body import ErrorAnswer, parse_error


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            {"error": {"message": "m", "type": "t", "param": None, "code": None}},
            ErrorAnswer("m", None, "t"),
        ),
        ({"error": {"message": "m", "type": "t", "code": 400}}, ErrorAnswer("m", "400", "t")),
        ({"detail": "Not Found"}, ErrorAnswer("Not Found")),
        (
            {"detail": [{"loc": ["body", 0], "msg": "x", "type": "t"}, {"msg": "y"}]},
            ErrorAnswer("body.0: x; y"),
        ),
        ({"detail": [{"loc": ["body"]}]}, ErrorAnswer('[{"loc":["body"]}]')),
        (
            {"type": "error", "code": "c", "message": "m", "error": {"type": "t"}},
            ErrorAnswer("m", "c", "t"),
        ),
        (
            {"type": "https://x/error-524/", "title": "A timeout", "status": 524},
            ErrorAnswer("A timeout", None, "https://x/error-524/"),
        ),
        ({"success": False, "message": "m"}, ErrorAnswer("m")),
        ({"error": "text"}, ErrorAnswer("text")),
        ({"msg": "m"}, ErrorAnswer("m")),
        ({"error_msg": "m"}, ErrorAnswer("m")),
        ({"response": {"error": {"message": "m", "code": "c"}}}, ErrorAnswer("m", "c")),
    ],
)
def test_each_shape_of_an_error_body_gives_its_message(body: Any, answer: ErrorAnswer) -> None:
    assert parse_error(json.dumps(body).encode()) == answer


def test_text_html_and_nothing_give_a_message_too() -> None:
    assert parse_error(b"Internal Server Error") == ErrorAnswer("Internal Server Error")
    assert parse_error(b" <html>sorry</html>") == ErrorAnswer("sorry", is_html=True)
    page = b"<!DOCTYPE html><head><title>502 Bad\n Gateway</title></head><body>x &amp; y</body>"
    assert parse_error(page).message == "502 Bad Gateway"
    page = b"<style>b{}</style><b>x &amp;</b><script>1<2</script> y<br>"
    assert parse_error(page).message == "x & y"
    assert parse_error(b"").message == "the answer had no body"


@given(st.binary())
def test_any_bytes_give_a_message(body: bytes) -> None:
    assert parse_error(body).message
