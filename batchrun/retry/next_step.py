"""What follows an attempt: one table by `ErrorKind`, and which answers are asked for again."""

import re
from collections.abc import Sequence
from enum import Enum

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StopCause
from batchrun.formats.amounts import plural
from batchrun.job.sections import RetryJob
from batchrun.records import SHORTFALLS, Failure, Request, Response

FIRST_WAIT_S = 0.5


class Cure(Enum):
    """What may help against a kind of failure."""

    WAIT = "again, and it never uses up an attempt"
    AGAIN = "again, as often as max_attempts says"
    ONCE_MORE = "one more attempt: each may be billed"
    TWICE_MORE = "two more attempts"
    LOST = "begun twice more, and it never uses up an attempt: each may be billed"
    NONE = "the row fails"
    FIX = "the run stops while nothing has succeeded, later the row fails"
    PAY = "the run stops"
    STOP = "the run stops: every row would meet the same"


class KindFacts(Struct, frozen=True):
    """What is known of a kind of failure."""

    cure: Cure
    is_free: bool = False  # refused before any work was done: nothing is used up or billed
    is_outage: bool = False  # many rows in a row mean that the endpoint is down
    holds: bool = False  # so do many that fail in the same way, after others were answered
    ends_polls: bool = False  # a poll that meets it is the last; after others, polls go on
    advice: str = ""  # for whoever has to fix it


def _refused(advice: str, *, ends_polls: bool = False) -> KindFacts:
    return KindFacts(Cure.FIX, is_free=True, holds=True, ends_polls=ends_polls, advice=advice)


def _unsent(advice: str) -> KindFacts:
    return KindFacts(Cure.STOP, is_free=True, advice=advice)


FACTS: dict[ErrorKind, KindFacts] = {
    ErrorKind.QUOTA: KindFacts(Cure.PAY, is_free=True, ends_polls=True),
    ErrorKind.CERTIFICATE: _unsent(
        "if your own authority issued it, name that authority's file in SSL_CERT_FILE; "
        "else check --base-url and the clock; then run the same command again"
    ),
    ErrorKind.PROXY: _unsent(
        "the proxy asks for a name and a password: put them into the variable that names "
        "it, as HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT, then run the same command again"
    ),
    ErrorKind.UNAUTHORIZED: _refused(
        "the key is refused or missing: check the variable or the command it comes from",
        ends_polls=True,
    ),
    ErrorKind.FORBIDDEN: _refused(
        "the key may not do this: check its rights, the model and the project",
        ends_polls=True,
    ),
    ErrorKind.NOT_FOUND: _refused("no such model or path: check --model and --base-url"),
    ErrorKind.REDIRECT: _refused("the server redirects: check --base-url (https? /v1 at its end?)"),
    ErrorKind.RATE_LIMIT: KindFacts(Cure.WAIT, is_free=True),
    ErrorKind.BUSY: KindFacts(Cure.AGAIN, is_free=True, is_outage=True),
    ErrorKind.GONE: KindFacts(Cure.LOST),
    ErrorKind.OVERLOADED: KindFacts(Cure.AGAIN, is_free=True, is_outage=True),
    ErrorKind.SERVER_ERROR: KindFacts(Cure.AGAIN, is_outage=True),
    ErrorKind.CONNECTION: KindFacts(Cure.AGAIN, is_outage=True),
    ErrorKind.CUT: KindFacts(Cure.AGAIN, is_outage=True),
    ErrorKind.FIREWALL: KindFacts(Cure.TWICE_MORE, is_free=True, is_outage=True),
    ErrorKind.UNREADABLE: KindFacts(Cure.TWICE_MORE, is_outage=True),
    ErrorKind.TIMEOUT: KindFacts(Cure.ONCE_MORE, is_outage=True),
    ErrorKind.GATEWAY_TIMEOUT: KindFacts(Cure.ONCE_MORE, is_outage=True),
    ErrorKind.OVER_LIMIT: KindFacts(Cure.NONE, is_free=True),
    ErrorKind.TOO_LARGE: KindFacts(Cure.NONE, ends_polls=True),
    ErrorKind.TOO_LONG: KindFacts(Cure.NONE, is_free=True, ends_polls=True),
    ErrorKind.CONTENT_POLICY: KindFacts(Cure.NONE, is_free=True, ends_polls=True),
    ErrorKind.BAD_REQUEST: KindFacts(Cure.NONE, is_free=True, holds=True),
    ErrorKind.CANCELLED: KindFacts(Cure.NONE),
    ErrorKind.INVALID_ROW: KindFacts(Cure.NONE),
    **{kind: KindFacts(Cure.NONE) for kind in SHORTFALLS},  # of answers: no attempt has them
}

# A hint that comes with these is a time in which the server does nothing for the row: none of what
# the row may take. Where a limit is behind it, the whole scope waits too, at the gate.
REFUSALS = (ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED)

# A server that has too much to do says nothing, in the end.
TIME_OUTS = (ErrorKind.TIMEOUT, ErrorKind.GATEWAY_TIMEOUT)

_BELIEVED = 2  # hints in a row: after that a row's own backoff counts too
SAME_ENDS = 3  # times that one error of a row may come back unchanged
_DOWN = (
    "",
    "server_error",
    "internal_server_error",
    "internal_error",
    "do_request_failed",
    "bad_response_status_code",
)
# Some servers end each message with an id of its own.
_ID = re.compile(r"(?i)\(request id:[^)]*\)|\breq_\w+")

# How many more attempts there are, and what is said when they are used up.
_MORE = {
    Cure.ONCE_MORE: (1, "no third attempt, since each may be billed"),
    Cure.TWICE_MORE: (2, "three attempts"),
    Cure.LOST: (2, "begun three times, and lost by the server each time"),
}
# Added to that; a time-out of our own names the setting that ended it.
_INSTEAD = {
    ErrorKind.TIMEOUT: "; if the server is only busy, a lower --concurrency helps too",
    ErrorKind.GATEWAY_TIMEOUT: (
        "; for long answers use --mode stream or background, and if the server is only busy, a "
        "lower --concurrency"
    ),
}
_UNCOUNTED = (Cure.WAIT, Cure.LOST)  # they use up no attempt


class Again(Struct, frozen=True):
    """Another attempt after `wait_s` seconds."""

    wait_s: float
    asked_s: float = 0.0  # of these, the server refused the row for so many: none of its own time


class GiveUp(Struct, frozen=True):
    """The row ends without an answer."""

    status: str  # the row's `status`: failed, or no_answer where another attempt might have helped
    reason: str  # to be added to the message; empty where that says all


class Halt(Struct, frozen=True):
    """The run ends; the row gets no outcome."""

    reason: str
    cause: StopCause


# What differs between two errors of one cause: numbers, and words that hold digits.
_VARYING = re.compile(r"[\w-]*\d[\w-]*")
_COMPARED = 200  # characters of a message


class ScopeHealth:
    """What a scope has shown so far."""

    def __init__(self) -> None:
        self.has_succeeded = False
        self.says_incomplete = False  # it has called an answer incomplete that its limit cut

    def at_limit(self, answer: Response) -> Response:
        """A truncated answer, as this server means it.

        Called completed, and as long as its limit, it is whole only where the server is known to
        call others incomplete: a field `incomplete_details` is no proof, since servers that never
        say `incomplete` send it too.
        """
        if answer.status != "completed":
            self.says_incomplete = True
            return answer
        return replace(answer, truncated=False) if self.says_incomplete else answer


def endpoint_error(failure: Failure) -> str | None:
    """What errors of one cause share, if it may be the endpoint; None where it is the row."""
    facts = FACTS[failure.kind]
    if failure.about_row or not (facts.is_outage or facts.holds):
        return None
    said = _VARYING.sub("#", failure.message)[:_COMPARED]
    return f"{failure.kind} {failure.http_status} {failure.code}: {said}"


def judge(
    failures: Sequence[Failure],
    *,
    hint_s: float | None,
    should_retry: bool | None,
    elapsed_s: float,
    settings: RetryJob,
    give_up_after_s: float,
    has_succeeded: bool,
    jitter: float,
    excused: Sequence[bool] | None = None,
    is_begun: bool = False,
) -> Again | GiveUp | Halt:
    """What follows the last of a row's `failures`; `jitter` is a random number from 0 to 1.

    `has_succeeded`: something was answered in this scope. `excused` says which of the failures were
    an outage of the endpoint: they cost the row no attempt. `is_begun`: background work goes on
    without us, and its id is on disk.
    """
    kind = failures[-1].kind
    cure = FACTS[kind].cure
    kinds = [failure.kind for failure in failures]
    if should_retry is True and cure is Cure.NONE:
        cure = Cure.AGAIN
    if cure is Cure.PAY:
        return Halt(
            "money or quota is used up; top up, then run the same command again", StopCause.QUOTA
        )
    if cure is Cure.FIX and is_begun:
        return Halt(_FIX_POLLS.get(kind, FACTS[kind].advice), StopCause.KEY)
    if cure is Cure.STOP:
        return Halt(FACTS[kind].advice, StopCause.ENDPOINT)
    if cure is Cure.FIX and not has_succeeded:
        return Halt(FACTS[kind].advice, StopCause.KEY)
    is_excused = excused is not None and excused[-1]
    if cure in (Cure.NONE, Cure.FIX) or (should_retry is False and not is_excused):
        return GiveUp("failed", "")
    if _comes_back(failures) and not is_excused:
        return GiveUp("failed", f"the same {SAME_ENDS} times")
    if kind in REFUSALS and hint_s is not None and hint_s > give_up_after_s:
        return Halt(
            f"the server asks to wait {hint_s:.0f} s, longer than limits.give_up_after_s; "
            "run the same command again after that time",
            StopCause.ENDPOINT,
        )
    if excused is not None:
        kinds = [
            other for other, was_excused in zip(kinds, excused, strict=True) if not was_excused
        ]
        if is_excused:
            return Again(_wait_s(1, None, settings, jitter))
    if kind is ErrorKind.UNREADABLE and is_begun:
        return GiveUp("no_answer", "the work is done; to begin it again would be billed again")
    same = [other for other in kinds if FACTS[other].cure is cure]
    most, reason = _MORE.get(cure, (len(same), ""))
    if len(same) > most:
        return GiveUp("no_answer", reason + _INSTEAD.get(kind, ""))
    counted = sum(FACTS[other].cure not in _UNCOUNTED for other in kinds)
    if cure not in _UNCOUNTED and counted >= settings.max_attempts:
        return GiveUp("no_answer", f"{plural(counted, 'attempt')} (retry.max_attempts)")
    if (
        _is_refused_key(failures[-1], has_succeeded=has_succeeded)
        and len(same) >= settings.max_attempts
    ):
        return Halt(FACTS[ErrorKind.UNAUTHORIZED].advice, StopCause.KEY)
    wait_s = _wait_s(len(same) if cure in _UNCOUNTED else counted, hint_s, settings, jitter)
    is_asked = kind in REFUSALS and hint_s is not None and len(same) <= _BELIEVED
    asked_s = wait_s if is_asked else 0.0
    if elapsed_s + wait_s - asked_s > settings.max_elapsed_s:
        return GiveUp("no_answer", f"after {elapsed_s:.0f} s (retry.max_elapsed_s)")
    return Again(wait_s, asked_s)


def _comes_back(failures: Sequence[Failure]) -> bool:
    """An error of its own, come back unchanged: not the load, but the request is what it is about.

    Errors without a code of their own are what servers say when they are down, and what comes with
    502 and above is a gateway's word about the server behind it, as is 424.
    """
    last = failures[-1]
    status = last.http_status or 0
    if status > 500 or 400 <= status < 500:
        return False
    code = (last.code or "").lower()
    # A gateway's code that is nothing but a status says no more than the status.
    if last.kind is not ErrorKind.SERVER_ERROR or code in _DOWN or code.isdigit():
        return False
    said = (last.code, _ID.sub("", last.message))
    same = [other for other in failures if (other.code, _ID.sub("", other.message)) == said]
    return len(same) >= SAME_ENDS


def _is_refused_key(last: Failure, *, has_succeeded: bool) -> bool:
    """A rate limit said with 401, where nothing ever came through: Cloudflare's 2009 is both."""
    return last.kind is ErrorKind.RATE_LIMIT and last.http_status == 401 and not has_succeeded


_BEGUN = "the same command then asks about the same work, and does not begin it twice"
_FIX_POLLS = {
    ErrorKind.UNAUTHORIZED: f"the key is refused for polls of background work: fix it; {_BEGUN}",
    ErrorKind.FORBIDDEN: f"the key may begin work but not poll it: check its rights; {_BEGUN}",
    ErrorKind.NOT_FOUND: "give the same command with another --mode",
}


def _wait_s(nth: int, hint_s: float | None, settings: RetryJob, jitter: float) -> float:
    """Seconds before the next attempt, after the `nth` failure of its kind."""
    longest_s = min(FIRST_WAIT_S * 2.0 ** min(nth, 32), max(settings.max_wait_s, 0.0))
    backoff_s = longest_s * (0.5 + 0.5 * jitter)
    if hint_s is None:
        return backoff_s
    # A hint that was too short twice is not believed alone any more.
    return hint_s if nth <= _BELIEVED else max(hint_s, backoff_s)


MOST_RAISES = 2


class Asks(Struct, frozen=True):
    """How often a row was asked again, and why."""

    for_length: int = 0
    for_fit: int = 0


def next_ask(
    asked: Request, answer: Response, asks: Asks, settings: RetryJob
) -> tuple[Request, Asks] | None:
    """The request to send instead, or null where the answer is final.

    A truncated answer is asked for with twice the limit, at most twice; one that does not fit its
    schema, or is empty, is asked for as it was. The request keeps its identity: only its body is
    another.
    """
    if answer.truncated:
        if settings.on_incomplete != "raise_limit" or asks.for_length >= MOST_RAISES:
            return None
        limit = asked.max_output_tokens or answer.usage.output_tokens
        if not limit:
            return None
        raised = replace(asks, for_length=asks.for_length + 1)
        return with_limit(asked, 2 * limit), raised
    if asks.for_fit >= settings.on_invalid_output:
        return None
    if answer.is_unfit or (answer.is_empty and b'"json_schema"' in asked.body):
        return asked, replace(asks, for_fit=asks.for_fit + 1)
    return None


def with_limit(request: Request, limit: int) -> Request:
    """The request with another `max_output_tokens`; it keeps its identity."""
    fields = msgspec.json.decode(request.body, type=dict[str, Raw])
    fields["max_output_tokens"] = Raw(str(limit).encode())
    return replace(request, body=msgspec.json.encode(fields), max_output_tokens=limit)
