"""Odd frames around a good answer, and connections that end oddly (items 7 and 14)."""

import gzip
import zlib
from collections.abc import Callable
from functools import partial

from tests.odd_servers.cases import FRAME, Case, Table

table = Table(FRAME)
WHOLE = ("plain", "background")  # modes whose answer is one JSON object


def _length(case: Case, more: int, end: str) -> None:
    case.wire.framing, case.wire.more, case.wire.end = "length", more, end


table.add("7.length_too_large", "framing", partial(_length, more=40, end="close"))
table.add("7.length_too_large_reset", "framing", partial(_length, more=7, end="reset"))
table.add("7.length_too_small", "framing", partial(_length, more=-9, end="close"), modes=WHOLE)
# What follows a body's length is passed over by aiohttp's session.
FAST_ONLY = ("7.length_too_small",)


def _chunked(case: Case, end: str) -> None:
    case.wire.framing, case.wire.has_end, case.wire.end = "chunked", False, end


table.add("7.no_last_chunk", "framing", partial(_chunked, end="close"), excludes=("no_final",))
table.add(
    "7.no_last_chunk_reset", "framing", partial(_chunked, end="reset"), excludes=("no_final",)
)


@table.named("7.until_close", "framing")
def _(case: Case) -> None:
    case.wire.framing, case.wire.end = "close", "close"


@table.named("7.chunked", "framing")
def _(case: Case) -> None:
    case.wire.framing = "chunked"


def _coded(case: Case, pack: Callable[[bytes], bytes], said: str | None) -> None:
    case.wire.body = pack(case.wire.body)
    if said is not None:
        case.wire.headers["Content-Encoding"] = said


def _as_it_is(body: bytes) -> bytes:
    return body


def _deflated(body: bytes) -> bytes:
    return zlib.compress(body)[2:-4]


_CODED: dict[str, tuple[Callable[[bytes], bytes], str | None]] = {
    "gzip": (gzip.compress, "gzip"),
    "deflate": (zlib.compress, "deflate"),
    "raw_deflate": (_deflated, "deflate"),
    "gzip_unsaid": (gzip.compress, None),
    "gzip_called_identity": (gzip.compress, "identity"),
    "gzip_called_br": (gzip.compress, "br"),
    "plain_called_gzip": (_as_it_is, "gzip"),
    "plain_called_deflate": (_as_it_is, "deflate"),
    "plain_called_br": (_as_it_is, "br"),
    "plain_called_utf8": (_as_it_is, "UTF-8"),
}
for _name, (_pack, _said) in _CODED.items():
    _apply = partial(_coded, pack=_pack, said=_said)
    table.add(f"7.{_name}", "coding", _apply, excludes=("7.length", "7.no_last"))


def _cut(case: Case, size: int) -> None:
    case.wire.cut = size


table.add("2.cut_at_every_byte", "cut", partial(_cut, size=1))
table.add("2.cut_at_some", "cut", lambda case: _cut(case, case.draw.randint(2, 900)))


def _type(case: Case, said: str | None) -> None:
    case.wire.type = said


for _name, _said in {
    "none": None,
    "text": "text/plain; charset=utf-8",
    "html": "text/html",
    "stream": "text/event-stream",
    "json": "application/json",
    "octets": "application/octet-stream",
}.items():
    table.add(f"7.type={_name}", "type", partial(_type, said=_said))


@table.named("7.blanks_around", "blanks", modes=WHOLE, excludes=("coding",))
def _(case: Case) -> None:
    case.wire.body = b" \r\n\t" * 9 + case.wire.body + b"\n\n "


@table.named("7.byte_order_mark", "blanks", modes=WHOLE, excludes=("coding",))
def _(case: Case) -> None:
    case.wire.body = b"\xef\xbb\xbf" + case.wire.body


@table.named("14.closes_after", "connection", excludes=("framing",))
def _(case: Case) -> None:
    """The connection is closed without a word, although it was to be kept."""
    case.wire.end = "close"


@table.named("14.dies_at_the_next", "connection", excludes=("framing",))
def _(case: Case) -> None:
    """The next request on this connection is read and never answered."""
    case.wire.closes_next = True


@table.named("10.odd_limits", "limits")
def _(case: Case) -> None:
    """Limits of other windows; none of them may slow the run to a halt."""
    case.wire.headers |= case.draw.choice(
        (
            {"X-RateLimit-Limit-Second": "500", "X-RateLimit-Remaining-Second": "499"},
            {"X-RateLimit-Limit-Day": "90000", "X-RateLimit-Remaining-Day": "80000"},
            {"RateLimit-Policy": '"q";q=1000;w=1', "RateLimit": '"q";r=999;t=1'},
            {
                "x-ratelimit-limit-tokens": "90,000,000",
                "x-ratelimit-remaining-tokens": "89,000,000",
            },
            {"x-ratelimit-limit-requests": "-1", "x-ratelimit-reset-requests": "soon"},
            {"anthropic-ratelimit-input-tokens-limit": "90000000"},
        )
    )


@table.named("0.early_hints", "early", modes=("plain",))
def _(case: Case) -> None:
    case.wire.headers["X-Early"] = "103"  # the server sends it before the head
