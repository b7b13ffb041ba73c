import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.transport.redaction import MASK, Redactor

KEY = 'sk-proj-Ab1/2+3="x y"&<z>'

_SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "as JSON": lambda key: json.dumps(key)[1:-1],
    "as JSON within JSON": lambda key: json.dumps(json.dumps(key)),
    "as JSON of PHP": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "as JSON of .NET": lambda key: key.replace("+", "\\u002B").replace('"', "\\u0022"),
    "in a URL": lambda key: quote(key, safe=""),
    "in a form": quote_plus,
    "in a page": html.escape,
    "as Python writes it": repr,
}


@pytest.mark.parametrize("spelling", _SPELLINGS)
def test_a_key_is_found_however_it_is_spelt(spelling: str) -> None:
    said = _SPELLINGS[spelling](KEY)
    hidden = Redactor([KEY]).hide_in(f"before {said} after")
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    assert MASK in hidden
    assert "Ab1" not in hidden


def test_the_secret_behind_a_scheme_is_one_by_itself() -> None:
    redactor = Redactor(["Negotiate 0123456789"])
    assert (
        redactor.hide(b"Negotiate 0123456789 or 0123456789, Negotiate") == b"*** or ***, Negotiate"
    )


def test_a_placeholder_is_no_secret() -> None:
    body = b'{"message": "EMPTY none x"}'
    assert Redactor(["EMPTY", "none", "x", ""]).hide(body) is body


def test_what_holds_no_secret_is_the_very_same() -> None:
    body = b"\xff\xfe" + b"any answer" * 1_000
    assert Redactor([KEY]).hide(body) is body
    assert Redactor().hide(body) is body


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
    st.binary(max_size=60),
    st.binary(max_size=60),
    st.sampled_from(sorted(_SPELLINGS)),
)
def test_any_key_is_removed_from_any_bytes(
    key: str, before: bytes, after: bytes, spelling: str
) -> None:
    said = _SPELLINGS[spelling](key).encode()
    hidden = Redactor([key]).hide(before + said + after)
    assert key.encode() not in hidden
    assert MASK.encode() in hidden
