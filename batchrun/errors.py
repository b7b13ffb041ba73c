"""What can stop a run, and the kinds of failure a row can meet. Imports nothing of batchrun.

A row that fails is a value (`records.Failure`); an exception ends the run.
Every message says what is wrong, where, and what to do next.
"""

from enum import StrEnum


class BatchrunError(Exception):
    """The root of all errors that batchrun raises on purpose."""

    exit_code = 1
    summary: object = None  # of the run that it ended, once anything was sent


class JobError(BatchrunError):
    """The job, an option or the run directory asked for is wrong; nothing was sent."""

    exit_code = 2


class InputError(BatchrunError):
    """The prompt set is wrong or unreadable; nothing was sent."""

    exit_code = 2


class StoreError(BatchrunError):
    """The run directory cannot be written or read; the run resumes once that is fixed."""


class StopCause(StrEnum):
    """Why a run stops early."""

    QUOTA = "quota"  # the provider's: money or quota is used up
    KEY = "key"  # key, model or path is refused
    BUDGET = "budget"  # limits.max_cost_usd, or limits.max_cost_per_command_usd
    ENDPOINT = "endpoint"  # down, or refuses everything, for longer than is waited
    FAILURES = "failures"  # too many rows fail
    TIME = "time"  # limits.stop_at


class RunStopped(BatchrunError):  # noqa: N818 - an end foreseen, not a fault
    """The run stopped early and can be resumed; `cause` says why."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        cause: StopCause,
        *,
        endpoint_error: str | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.endpoint_error = endpoint_error  # in which rows agreed that may be to blame, ...
        self.rows = rows  # ... but only where no more than these remain


class Interrupted(BatchrunError):  # noqa: N818 - a signal's wish, not a fault
    """A signal asked the run to stop; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ErrorKind(StrEnum):
    """Why an attempt failed: the key of the retry table, the word in Parquet and in reports."""

    QUOTA = "quota"  # billing: money or quota used up
    UNAUTHORIZED = "unauthorized"  # 401: the key is refused
    FORBIDDEN = "forbidden"  # 403: the key may not do this
    NOT_FOUND = "not_found"  # 404: no such model or path
    FIREWALL = "firewall"  # 403 as HTML: something in front of the API
    REDIRECT = "redirect"  # 3xx: the base URL is not the API's
    RATE_LIMIT = "rate_limit"  # 429 that waiting cures
    OVER_LIMIT = "over_limit"  # one request larger than the whole token limit
    BUSY = "busy"  # 408, 409, 425: the same again later
    OVERLOADED = "overloaded"  # the server says that it has too much to do
    SERVER_ERROR = "server_error"  # other 5xx, and errors that the API calls its own
    GATEWAY_TIMEOUT = "gateway_timeout"  # 504, 524: the work may go on and be billed
    TIMEOUT = "timeout"  # our own limit on one attempt; the work may go on and be billed
    CONNECTION = "connection"  # no connection, or it was lost before an answer
    CUT = "cut"  # the answer broke off on the wire
    UNREADABLE = "unreadable"  # a complete answer that is no response
    TOO_LARGE = "too_large"  # the answer is above endpoint.max_response_bytes
    TOO_LONG = "too_long"  # the input is longer than the model or server takes
    CONTENT_POLICY = "content_policy"  # the provider refuses this content
    BAD_REQUEST = "bad_request"  # any other 4xx
    CERTIFICATE = "certificate"  # the server's certificate cannot be verified
    PROXY = "proxy"  # 407: a proxy asks for a name and a password
    GONE = "gone"  # a background response that the server does not know any more
    CANCELLED = "cancelled"  # the API says that the response was cancelled
    INVALID_ROW = "invalid_row"  # no request could be made of the row; never sent
    # Answered, and not ok. These are kinds of rows, never of attempts.
    REFUSAL = "refusal"  # the model refused
    TRUNCATED = "truncated"  # cut at the token limit
    EMPTY_OUTPUT = "empty_output"  # no text, refusal, tool call or other result
    INVALID_OUTPUT = "invalid_output"  # the text does not fit the JSON schema


class EndpointError(BatchrunError):
    """One attempt that brought no whole answer: raised by `transport`, caught by `dispatch`."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        http_status: int | None = None,
        response_id: str | None = None,
        *,
        was_sent: bool = True,
        request_id: str | None = None,
        said: bytes = b"",
        body: bytes = b"",
        content_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.http_status = http_status
        self.response_id = response_id  # where the answer had begun to come
        self.was_sent = was_sent  # false: no connection came about, so nothing was used up
        self.request_id = request_id  # the server's, where the head of an answer was there
        self.said = said  # a response of what a stream said before it broke off; empty: nothing
        self.body = body  # what has arrived, as far as it is stored for a person to read
        self.content_type = content_type  # of that body
