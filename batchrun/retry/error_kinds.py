"""An error answer, whatever its shape, to its `ErrorKind`: what it says, and one table.

Code before type before message before HTTP status, since gateways flatten the first ones into
the last (PROTOCOL B.2; for the codes of reselling gateways B.6).
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import PART, duration_s
from batchrun.formats.json_text import beginning, compact, decode, is_bool, text
from batchrun.records import Request
from batchrun.retry.server_words import (
    ACCOUNT,
    CODE_PARTS,
    CODES,
    MONEY,
    NOT_MONEY,
    OBJECT,
    SPENT,
    SPENT_PARTS,
    STATUSES,
    WORDS,
    Words,
    plain,
)

_LONGEST = 8_000  # characters of a message: some servers send the whole input back
_PAGE = 8 * 1024  # bytes of a page that are looked at
_SHORT_PAGE = b"error code: 1"  # Cloudflare's pages in plain text: `error code: 1010`
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")
_TAG = re.compile(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>")


class ErrorBody(Struct, frozen=True):
    """What an error body says, whatever its shape."""

    message: str
    code: str | None = None
    type: str | None = None
    is_html: bool = False  # a page, of something in front of the API
    param: str | None = None  # of the request


_NOTHING = ErrorBody("")


def parse_error(body: bytes) -> ErrorBody:
    """What a body that came with a status other than 2xx says."""
    if not body.strip():
        return ErrorBody("the answer had no body")
    try:
        value = decode(body)
    except ValueError:
        if body.lstrip()[:1] == b"<":
            return ErrorBody(_page(body), is_html=True)
        return ErrorBody(beginning(body), is_html=body.startswith(_SHORT_PAGE))
    return find_error(value) or ErrorBody(beginning(body))


def find_error(value: object) -> ErrorBody | None:
    """The error in any of the shapes that servers and gateways use; null where there is none."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    nested = value.get("response")
    if not value.get("error") and isinstance(nested, dict) and nested.get("error"):
        value = nested
    outer = (text(value, "message"), _code(value.get("code")), _type(value))
    inner = _error_object(value)
    if inner is not None:
        # Each field from within, else from without: servers do both (PROTOCOL 0.8).
        deeper = find_error(inner.get("message")) or _NOTHING
        message = text(inner, "message") or deeper.message or text(inner, "detail") or outer[0]
        return ErrorBody(
            (message or compact(inner))[:_LONGEST],
            _code(inner.get("code")) or deeper.code or outer[1],
            _type(inner) or deeper.type or outer[2],
            param=_param(inner),
        )
    for name in ("error", "detail", "message", "msg", "error_msg", "title"):
        if words := value.get(name):
            return ErrorBody(_message(words)[:_LONGEST], *outer[1:], param=_param(value))
    return None


def _error_object(value: dict[str, Any]) -> dict[str, Any] | None:
    """The object that describes the error, where there is one within; of a list, the first."""
    for name in ("error", "errors", "detail"):
        inner = value.get(name)
        if isinstance(inner, list) and inner and text(inner[0], "message"):
            inner = inner[0]
        if isinstance(inner, dict) and inner:
            return inner
    return None


def _type(value: dict[str, Any]) -> str | None:
    """AWS names the type `__type`, Google `status`, Cloudflare's AI Gateway `name`."""
    names = ("type", "__type", "status", "name")
    return next((word for name in names if (word := text(value, name))), None)


def _param(value: dict[str, Any]) -> str | None:
    param = text(value, "param")
    return None if param in ("", "None", "null") else param


# Words that name a field of the request (FastAPI: its place), or the id of an object that it
# refers to.
_OF_ROW = re.compile(
    r"(?i)^body\.|\b(?:unknown|unsupported|unexpected|unrecognized|invalid|missing)\b[^.:]{0,40}"
    r"\b(?:parameter|param|field|argument|property|value)|"
    r"\b(?:resp|conv|file|vs|msg|pmpt|cntr|rs)[_-][A-Za-z0-9]{4,}"
)
_LOOKED_AT = 500  # characters of a message: what follows may quote the row


def names_row(error: ErrorBody) -> bool:
    """Whether the error names a field of the request, or an object that it refers to."""
    return error.param is not None or _OF_ROW.search(error.message[:_LOOKED_AT]) is not None


def _message(value: object) -> str:
    """Text as it is; a list of problems (FastAPI's) as the places and what is wrong there."""
    if isinstance(value, str):
        return value
    problems = []
    for problem in value if isinstance(value, list) else ():
        what = text(problem, "msg")
        if what is None:
            return compact(value)
        steps = problem.get("loc")
        where = ".".join(str(step) for step in steps) if isinstance(steps, list) else ""
        problems.append(f"{where}: {what}" if where else what)
    return beginning("; ".join(problems).encode()) if problems else compact(value)


def _page(body: bytes) -> str:
    """A page's title, else its words."""
    page = body[:_PAGE].decode(errors="replace")
    title = _TITLE.search(page)
    words = html.unescape(_TAG.sub(" ", title[1] if title else page))
    return beginning(" ".join(words.split()).encode()) if words.strip() else beginning(body)


def _code(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not is_bool(value) else None


_HTTP_STATUS = re.compile(r"[45][0-9][0-9]")
_GENERIC = frozenset({"server_error", "internal_server_error"})

_OVER_LIMIT = re.compile(
    r"(?is)request too large.*?limit:?\s*(\d{1,18}).*?requested:?\s*(\d{1,18})",
)
# Anthropic: a long request beyond what the plan includes.
_OVER_PLAN = "extra usage is required for long context"

_HINT = re.compile(
    rf"(?i)(?:try again|retry) (?:in|after) ((?:{PART} ?)+)(?![a-z])",
)
_TOLD = 600  # characters of a message that tell a kind; after them it may be the row's own words
# A gateway that flattens an error keeps the first one's JSON (or its Python form) in the message,
# or the name of its exception.
_INNER = re.compile(
    r"""\\*["'](?:code|type|status|__type)\\*["']\s*:\s*(?:\\*["'])?([A-Za-z0-9_.]{1,60})"""
)
_EXCEPTION = re.compile(r"\b([A-Z][A-Za-z]{2,40}(?:Error|Exception))\b")
_ADDRESS = re.compile(r"https?://\S*")
# In the request's own JSON: ids, names and addresses that a message may repeat.
_NAMED = re.compile(r"https?://[^\s'\"`]{4,300}|\b[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)+")
_LEAST_NAME = 10  # characters
_DIGIT = re.compile(r"[0-9]|://")  # words of the language have neither
_CONTEXT = re.compile(r"[\w ,]*")
_AROUND = 12  # characters beside a found word that an echo repeats too
# A kind that says no more than "refused": what the message says comes before it.
_VAGUE: frozenset[ErrorKind | None] = frozenset({None, ErrorKind.UNAUTHORIZED, ErrorKind.FORBIDDEN})
# Kinds that end a run or hold up its other rows: no row's own words may bring them about.
_GRAVE = frozenset(
    {ErrorKind.QUOTA, ErrorKind.RATE_LIMIT, ErrorKind.NOT_FOUND, ErrorKind.UNAUTHORIZED}
)
_INVALID = (400, 422)  # statuses of validation errors
_REFUSED = (400, 403, 404, 410)

OwnWords = Mapping[str, Sequence[str]]  # `[retry.words]`: kind to parts of messages
NO_WORDS: OwnWords = {}


def classify(
    http_status: int,
    code: str | None,
    error_type: str | None,
    message: str,
    *,
    param: str | None = None,
    is_html: bool = False,
    asked: Request | None = None,
    words: OwnWords = NO_WORDS,
) -> ErrorKind:
    """The kind of an error answer; `http_status` may be 2xx where the body is an error.

    `asked`: the request, whose own words in the message prove nothing. `words`: the job's own,
    which win.
    """
    own = own_kind(words, f"{code or ''} {error_type or ''} {message}")
    if own is not None:
        return own
    # A 2xx whose error carries a status as its code means that status.
    is_status = http_status < 300 and code is not None and _HTTP_STATUS.fullmatch(code)
    status = int(code or 0) if is_status else http_status
    said = _Said(status, message[:_TOLD], param, asked)
    named = [word for word in (code, error_type) if word]
    inner = said.inner_codes()
    if said.is_money([*named, *inner]):
        return ErrorKind.QUOTA
    kind = _of_codes(status, [*named, *inner])
    if kind in _VAGUE:
        kind = said.kind_in_words() or kind
    if kind in (None, ErrorKind.FORBIDDEN) and said.is_about_own_object():
        return ErrorKind.BAD_REQUEST
    if kind is None:
        # A word that says no more than "error" gives way to a status that says more.
        if status not in STATUSES and not _GENERIC.isdisjoint((code, error_type)):
            return ErrorKind.SERVER_ERROR
        kind = _of_status(status, error_type, is_html=is_html)
    if kind is ErrorKind.OVERLOADED and status == 429:
        return ErrorKind.RATE_LIMIT  # which uses up no attempt
    if kind is ErrorKind.RATE_LIMIT:
        over = _OVER_LIMIT.search(message)
        # The same words come with requests below the limit: then waiting does help.
        if (over and int(over[2]) > int(over[1])) or _OVER_PLAN in message.lower():
            return ErrorKind.OVER_LIMIT
    return kind


def kind_of(
    http_status: int,
    error: ErrorBody,
    header_type: str | None,
    *,
    asked: Request | None = None,
    words: OwnWords = NO_WORDS,
) -> ErrorKind:
    """The kind of an error body, as `classify`; `header_type`: AWS names the type in a header."""
    return classify(
        http_status,
        error.code,
        error.type or header_type,
        error.message,
        param=error.param,
        is_html=error.is_html,
        asked=asked,
        words=words,
    )


def own_kind(words: OwnWords, said: str) -> ErrorKind | None:
    """The kind that the job's own words give to what a server said, in the job's order."""
    lower = said.lower()
    for kind, parts in words.items():
        if any(part.lower() in lower for part in parts):
            return ErrorKind(kind)
    return None


def hint_in(message: str) -> float | None:
    """Seconds that a message asks to wait: `try again in 9.816s`, `20ms`, `6m0s`, `6 seconds`."""
    found = _HINT.search(message)
    return None if found is None else duration_s(found[1])


class _Said(Struct, frozen=True):
    """What a message says, as far as it is the server's own word."""

    status: int
    message: str  # its beginning
    param: str | None
    asked: Request | None

    @property
    def names_other_param(self) -> bool:
        return self.param is not None and self.param != "model"

    def inner_codes(self) -> list[str]:
        """Codes of an error within the message."""
        found = [*_INNER.finditer(self.message)]
        # A `PermissionError` is Python's own, and one with a key may be between two servers.
        found += [
            match
            for match in _EXCEPTION.finditer(self.message)
            if _of_code(match[1]) not in _VAGUE or SPENT_PARTS.search(plain(match[1]))
        ]
        return [match[1] for match in found if not self._is_echo(match)]

    def is_money(self, codes: Iterable[str]) -> bool:
        """Whether money or quota is used up, by a code, else by words that say nothing else."""
        names = {plain(code) for code in codes}
        if self.status == 402 or not SPENT.isdisjoint(names):
            return True
        if NOT_MONEY.search(self.message) or "resourceexhausted" in names:
            return False
        return any(SPENT_PARTS.search(name) for name in names) or self._finds(MONEY)

    def kind_in_words(self) -> ErrorKind | None:
        """What words without a code say."""
        return next((words.kind for words in WORDS if self._finds(words)), None)

    def is_about_own_object(self) -> bool:
        """Whether a refusal is about something that the row names, and no other row need name."""
        if self.status not in _REFUSED:
            return False
        if self.status != 400 and self.names_other_param:
            return True
        if self.param == "model":
            return False
        return OBJECT.search(self.message) is not None or self._repeats_a_name()

    def _repeats_a_name(self) -> bool:
        """Whether it repeats an id or an address of the request; the model's name is none."""
        asked = self.asked
        if asked is None:
            return False
        model = asked.model or ""
        return any(
            len(name) >= _LEAST_NAME and name.encode() in asked.body
            for name in _NAMED.findall(self.message)
            if _DIGIT.search(name) and name not in model and not (model and model in name)
        )

    def _finds(self, words: Words) -> bool:
        if self.status not in words.statuses:
            return False
        is_grave = words.kind in _GRAVE
        if is_grave and self.status in _INVALID and self.names_other_param:
            return False  # it says itself what is wrong with the row
        # Links to a page about rate limits stand in other refusals too.
        is_limit = words.kind is ErrorKind.RATE_LIMIT
        text = _ADDRESS.sub("", self.message) if is_limit else self.message
        found = words.pattern.search(text)
        if found is None or (is_grave and self._is_echo(found)):
            return False
        # The account is shut, not this content refused.
        is_policy = words.kind is ErrorKind.CONTENT_POLICY
        return not (is_policy and self.status == 403 and ACCOUNT.search(text))

    def _is_echo(self, found: re.Match[str]) -> bool:
        """Whether the words, with those beside them, stand in the request itself."""
        if self.asked is None:
            return False
        text = found.string
        before = text[max(0, found.start() - _AROUND) : found.start()][::-1]
        after = text[found.end() : found.end() + _AROUND]
        left, right = _CONTEXT.match(before), _CONTEXT.match(after)
        start = found.start() - (left.end() if left else 0)
        whole = text[start : found.end() + (right.end() if right else 0)].strip()
        asked = self.asked.body.decode(errors="replace").replace('\\"', '"')  # JSON's quotes
        return whole.lower() in asked.lower()


def _of_codes(status: int, codes: Iterable[str]) -> ErrorKind | None:
    """The first code that says something; one that only says "refused" gives way to another."""
    vague: ErrorKind | None = None
    for code in codes:
        kind = _of_code(code)
        if kind is ErrorKind.NOT_FOUND and status == 503:
            return ErrorKind.OVERLOADED  # no channel for the model, perhaps only for now
        if kind not in _VAGUE:
            return kind
        vague = vague or kind
    return vague


def _of_code(code: str) -> ErrorKind | None:
    name = plain(code)
    return CODES.get(name) or next((kind for part, kind in CODE_PARTS if part.search(name)), None)


def _of_status(status: int, error_type: str | None, *, is_html: bool) -> ErrorKind:
    if 300 <= status < 400:
        return ErrorKind.REDIRECT
    if status == 403 and is_html:
        return ErrorKind.FIREWALL
    if status in STATUSES:
        return STATUSES[status]
    if 400 <= status < 500:
        return ErrorKind.BAD_REQUEST
    if status < 300 and error_type == "invalid_request_error":
        return ErrorKind.BAD_REQUEST
    return ErrorKind.SERVER_ERROR
