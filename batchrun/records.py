"""The data of a run, frozen. It holds facts and decides nothing.

Times named `_at` are microseconds since 1970 (UTC), as integers; times named `_s` are seconds.
msgspec structs, since a row makes several of them. Those that the journal writes are `array_like`:
fields are known by their positions, so new ones come last. A row's hold no cycles (`gc=False`).
"""

import math
from typing import Any

from msgspec import Struct, field

from batchrun.errors import ErrorKind

JsonObject = dict[str, Any]
RowKey = tuple[str, int, str | None]  # custom_id, sample, variant: what a row is known by


def joined_key(key: RowKey) -> str:
    """A row of a run as one name where samples or variants vary: `ID|VARIANT|SAMPLE`.

    No variant's name holds `|`.
    """
    custom_id, sample, variant = key
    return f"{custom_id}|{variant or ''}|{sample}"


def shown_key(key: RowKey) -> str:
    """The id alone where there is neither sample nor variant, else as `joined_key`."""
    return joined_key(key) if key[1] or key[2] is not None else key[0]


class Column(Struct, frozen=True):
    """One carried column, pinned in `run.json` when a source is planned for the first time."""

    name: str  # in `responses`
    column: str  # in the source
    type: str  # as a person reads it: bool, int64, double, string, json, timestamp[us], ...
    arrow: str  # base64 of an Arrow schema with the fields `type` and `stored` (see below)
    # `type` is the column's type in Parquet; `stored` the type of the plain values (numbers, text,
    # bytes, lists, objects) that travel through `Request.carried` and the journal. The first is
    # made from the second by a cast.


class Layout(Struct, frozen=True):
    """How rows are named and what they carry, pinned in `run.json` by the first plan."""

    id_column: str | None  # names rows without `custom_id`; null: the row's number does
    columns: tuple[Column, ...]  # carried, in the order of `Request.carried`
    bad_row_suffix: str = ""  # after the number of a bad row without a name, where ids are numbers


class Request(Struct, frozen=True, array_like=True, gc=False):
    """One row, ready to be sent."""

    row: int  # place in the input, from 0
    custom_id: str
    source: str  # the input file
    body: bytes  # JSON as meant: UTF-8, keys in the row's order, without transport fields
    hash: str  # 16 hex digits over the canonical body
    model: str | None
    max_output_tokens: int | None
    carried: tuple[Any, ...]  # values of the pinned columns, in their order, in their stored types
    sample: int = 0
    variant: str | None = None
    resume_id: str | None = None  # a response begun in background mode by an earlier process

    @property
    def key(self) -> RowKey:
        return self.custom_id, self.sample, self.variant


class BadRow(Struct, frozen=True):
    """A row that no request can be made of."""

    row: int
    custom_id: str  # the row's number where the row gives none
    source: str
    line: int | None  # from 1; null where the source has no lines
    message: str
    hash: str  # 16 hex digits over the row as it was read
    carried: tuple[Any, ...] = ()  # empty: nothing is carried of a row that could not be read
    sample: int = 0
    variant: str | None = None

    @property
    def key(self) -> RowKey:
        return self.custom_id, self.sample, self.variant


class Scope(Struct, frozen=True, cache_hash=True):
    """What limits are counted for."""

    base_url: str
    key: str  # the variable's name, never the key
    model: str


class Need(Struct, frozen=True, gc=False):
    """What an attempt asks of the limits: reservations, corrected when it has ended."""

    scope: Scope
    tokens: int = 0  # input and output
    dollars: float = 0.0
    output_tokens: int = 0  # of the tokens


class Largest(Struct, frozen=True):
    """The most tokens that answers of one model needed."""

    input_tokens: int = 0
    output_tokens: int = 0


class Slot(Struct, frozen=True, gc=False):
    """An attempt that the gate has let in."""

    need: Need
    started_s: float  # on the gate's clock


class AdvertisedLimit(Struct, frozen=True):
    """One limit as a server advertises it in the headers of an answer."""

    header: str  # the name of its header, as the server writes it
    of: str  # requests or tokens
    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None  # until it is full again, not until a request may go
    window_s: float | None = None  # that it is for; null where nothing says so


class Finish(Struct, frozen=True, gc=False):
    """What the end of an attempt tells the limits.

    `kind` null and `answered`: an answer; `kind` and `answered`: an error answer; `kind` alone: no
    answer came; neither: batchrun itself dropped the attempt.
    """

    kind: ErrorKind | None = None
    answered: bool = True
    is_retry: bool = False  # the attempt was not the row's first
    hint_s: float | None = None  # how long the server asks to wait
    slow_down: bool = False  # the server says that the ramp is too steep
    error: str | None = None  # the message, for people
    endpoint_error: str | None = None  # of an error that may be the endpoint's: what is the same
    row: int = -1  # that failed
    failing_since_s: float = math.inf  # its first failure, on the gate's clock
    advertised: tuple[AdvertisedLimit, ...] = ()
    tokens: int | None = None  # used; null: not known, the reservation stays
    dollars: float | None = None  # spent; null: not known, the reservation stays
    output_tokens: int | None = None  # of the tokens
    is_begun: bool = False  # of a failure: the server had begun to work on it


class Reply(Struct, frozen=True, gc=False):
    """What came back over the wire, whole and not yet understood."""

    http_status: int
    body: bytes
    request_id: str | None
    retry_after_s: float | None
    reported_cost_usd: float | None
    should_retry: bool | None = None  # what the server itself says about another attempt
    first_token_s: float | None = None  # stream mode: until the first non-empty delta
    advertised: tuple[AdvertisedLimit, ...] = ()
    said: bytes = b""  # a response of what a stream said before its error; empty: nothing
    error_type: str | None = None  # of an error, where a header says it (AWS)
    response_id: str | None = None  # of background work that had begun, whatever the body says
    content_type: str | None = None  # null: a JSON object that arrived together with its head
    context: str | None = None  # of an error: where it was posted, that no key was sent


STORED_BODY_BYTES = 64 * 1024  # of a body that cannot be read


class UnreadableBody(Struct, frozen=True):
    """What a paid attempt brought and nobody could read."""

    key: RowKey
    client_request_id: str | None  # of the attempt
    at: int
    http_status: int | None
    content_type: str | None
    body: bytes  # stored as far as `STORED_BODY_BYTES`


class Usage(Struct, frozen=True, array_like=True, gc=False):
    """Tokens as the server counted them; null where it said nothing."""

    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None


class Searches(Struct, frozen=True, gc=False):
    """What an answer's hosted tools did that is billed by the piece."""

    web: int = 0  # searches of the web; pages opened are none
    file: int = 0  # searches of files


NO_SEARCHES = Searches()


class ToolCall(Struct, frozen=True, array_like=True, gc=False):
    """One output item that calls a tool."""

    position: int  # among the output items
    type: str
    call_id: str | None
    name: str | None
    arguments: str | None  # as the model wrote them
    arguments_valid: bool | None  # null where nothing says what would be valid
    status: str | None
    item: str  # the item as JSON, cut above 64 kB


class Citation(Struct, frozen=True, array_like=True, gc=False):
    """One annotation of the output text."""

    type: str
    url: str | None = None
    title: str | None = None
    file_id: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class Failure(Struct, frozen=True, array_like=True, gc=False, tag="failure"):
    """Why a row, or one attempt at it, has no answer."""

    kind: ErrorKind
    message: str
    code: str | None = None
    http_status: int | None = None
    status: str = "failed"  # failed, no_answer or invalid: the row's `status`
    about_row: bool = False  # the error names something of the request


class Response(Struct, frozen=True, array_like=True, gc=False, tag="response"):
    """An answer, understood."""

    id: str | None
    status: str  # completed, incomplete, failed, cancelled
    model: str | None
    service_tier: str | None
    output: str  # the output items as JSON, verbatim
    output_text: str | None
    refusal: str | None
    reasoning_summary: str | None
    citations: tuple[Citation, ...]
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    usage_json: str | None  # verbatim, with `tool_usage`
    truncated: bool
    incomplete_reason: str | None
    reported_cost_usd: float | None = None
    failure: Failure | None = None  # what the API gives as the reason of `failed` or `cancelled`
    output_parsed_ok: bool | None = None
    reasoning_text: str | None = None
    is_empty: bool = False  # completed, and the output holds nothing but reasoning or white space

    @property
    def ok(self) -> bool:
        is_whole = self.status == "completed" and self.failure is None
        return is_whole and self.shortfall is None

    @property
    def is_unfit(self) -> bool:
        """Whether the text is the answer, and does not fit its schema.

        Beside a call that the user answers, text is only what the model says about it.
        """
        return self.output_parsed_ok is False and not any(
            call.type in ("function_call", "custom_tool_call") for call in self.tool_calls
        )

    @property
    def shortfall(self) -> Failure | None:
        """Why an answer that came is not ok: the first reason that holds.

        None too where the API itself says why, in `failure` or `incomplete_reason`.
        """
        if self.status not in ("completed", "incomplete"):
            return None
        if self.refusal is not None:
            return Failure(ErrorKind.REFUSAL, "the model refused")
        if self.truncated:
            return Failure(ErrorKind.TRUNCATED, "the answer was cut at the token limit")
        if self.is_empty:
            return Failure(ErrorKind.EMPTY_OUTPUT, self._empty_in_words())
        if self.output_parsed_ok is False and self.status == "completed" and self.is_unfit:
            message = "the text does not fit the JSON schema of the request"
            return Failure(ErrorKind.INVALID_OUTPUT, message)
        return None

    def _empty_in_words(self) -> str:
        text = "nothing but white space as text" if self.output_text else "no text"
        words = f"the answer has {text}, no refusal and no tool call"
        output, reasoning = self.usage.output_tokens, self.usage.reasoning_tokens
        counts = [] if output is None else [f"output tokens: {output:,}"]
        counts += [f"of reasoning: {reasoning:,}"] if reasoning else []
        return f"{words} ({', '.join(counts)})" if counts else words


class Attempt(Struct, frozen=True, array_like=True, gc=False):
    """One attempt at a row."""

    started_at: int
    latency_s: float
    kind: str  # first, retry, reask, hedge
    http_status: int | None = None
    error_kind: ErrorKind | None = None
    error_message: str | None = None
    request_id: str | None = None
    client_request_id: str | None = None
    response_id: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    endpoint: str | None = None  # where it differs from the outcome's


class Outcome(Struct, frozen=True, array_like=True, gc=False, tag="outcome"):
    """The end of a request: exactly one for each."""

    request: Request
    result: Response | Failure
    attempts: tuple[Attempt, ...]  # in order; empty where none was sent
    endpoint: str  # base URL
    via: str  # plain, stream, background
    first_token_s: float | None = None
    cost_usd: float | None = None
    priced_as: str | None = None
    counted: int = -1  # which of the attempts brought the result
    replaces: bool = False  # a part holds an older outcome of the row until this one is sealed

    @property
    def ok(self) -> bool:
        return isinstance(self.result, Response) and self.result.ok

    @property
    def failure(self) -> Failure | None:
        """Why there is no answer, why the response has failed, or why the answer is not ok."""
        result = self.result
        return result.failure or result.shortfall if isinstance(result, Response) else result

    @property
    def is_unpriced(self) -> bool:
        """Whether it was sent and nobody knows what it cost."""
        return self.cost_usd is None and bool(self.attempts)

    @property
    def unpriced_model(self) -> str | None:
        """The model asked for, where it said what it used and has no price."""
        if self.is_unpriced and self.priced_as is None and isinstance(self.result, Response):
            usage = self.result.usage
            if usage.input_tokens is not None or usage.output_tokens is not None:
                return self.request.model
        return None


class Begun(Struct, frozen=True, array_like=True, tag="begun"):
    """A response begun in background mode."""

    key: RowKey
    hash: str  # of the request that began it
    endpoint: str  # base URL; empty where schema 1 did not say it
    response_id: str


class Answered(Struct, frozen=True, array_like=True, tag="answered"):
    """An answer that is asked for once more."""

    key: RowKey
    turn: int  # of a conversation with tools; 0 without
    outcome: Outcome  # as it would be if it were the last: the answer, and all attempts so far
    limit: int | None  # `max_output_tokens` that it was asked with
    raised: int = 0  # times that it was asked for with a higher limit before
    refitted: int = 0  # times that it was asked for to fit its schema before


class Totals(Struct, frozen=True):
    """What a run's complete rows add up to."""

    rows: int = 0
    ok: int = 0
    truncated: int = 0
    refused: int = 0
    statuses: dict[str, int] = field(default_factory=dict)  # `status` to rows
    error_kinds: dict[str, int] = field(default_factory=dict)  # `error_kind` to rows
    tool_calls: int = 0
    attempts: int = 0
    attempt_kinds: dict[str, int] = field(default_factory=dict)  # `kind` to attempts
    unknown_attempts: int = 0  # attempts whose cost is not known: it is in no sum
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    cost_usd: float | None = None  # of all attempts; null where no row's cost is known
    unpriced: int = 0  # rows with attempts of which no cost is known
    unpriced_model: str | None = None  # one of the models that have no price
    unpriced_models: tuple[str, ...] = ()  # all of them, sorted; of very many the first that came

    def without(self, some: "Totals") -> "Totals":
        """The totals without rows that are counted in `some`."""
        if not some.rows:
            return self
        sums = {
            name: mine - getattr(some, name)
            for name in self.__struct_fields__
            if isinstance(mine := getattr(self, name), int)
        }
        statuses, cost_usd = _less(self.statuses, some.statuses), self.cost_usd
        if cost_usd is not None:
            cost_usd = max(0.0, cost_usd - (some.cost_usd or 0.0))
            # Rows that were never sent cost nothing and have no cost; what is left of sums is none.
            has_cost = sums["rows"] > sums["unpriced"] + statuses.get("invalid", 0)
            cost_usd = cost_usd if has_cost or cost_usd > _NO_COST_USD else None
        return Totals(
            statuses=statuses,
            error_kinds=_less(self.error_kinds, some.error_kinds),
            attempt_kinds=_less(self.attempt_kinds, some.attempt_kinds),
            cost_usd=cost_usd,
            unpriced_model=self.unpriced_model if sums["unpriced"] else None,
            unpriced_models=self.unpriced_models if sums["unpriced"] else (),
            **sums,
        )

    def plus(self, others: "Totals") -> "Totals":
        """The totals of both."""
        sums = {
            name: mine + getattr(others, name)
            for name in self.__struct_fields__
            if isinstance(mine := getattr(self, name), int)
        }
        costs = [one.cost_usd for one in (self, others) if one.cost_usd is not None]
        return Totals(
            statuses=_more(self.statuses, others.statuses),
            error_kinds=_more(self.error_kinds, others.error_kinds),
            attempt_kinds=_more(self.attempt_kinds, others.attempt_kinds),
            cost_usd=sum(costs) if costs else None,
            unpriced_model=self.unpriced_model or others.unpriced_model,
            unpriced_models=tuple(sorted({*self.unpriced_models, *others.unpriced_models})),
            **sums,
        )


_NO_COST_USD = 1e-9  # sums in another order differ by less


def _less(counts: dict[str, int], some: dict[str, int]) -> dict[str, int]:
    less = {name: count - some.get(name, 0) for name, count in counts.items()}
    return {name: count for name, count in less.items() if count}


def _more(counts: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + others.get(name, 0) for name in sorted(counts | others)}


class Earlier(Struct, frozen=True):
    """What the older outcome of a row that is sent again brings along."""

    attempts: tuple[Attempt, ...]
    cost_usd: float | None
    totals: Totals  # what it adds to the totals until it is replaced
    row: int | None = None  # the number that the tables give it


FAILED = ("failed", "no_answer", "cancelled")  # statuses of rows without an answer that were sent
# Error kinds of answers that are not ok, the first that holds.
SHORTFALLS = (
    ErrorKind.REFUSAL,
    ErrorKind.TRUNCATED,
    ErrorKind.EMPTY_OUTPUT,
    ErrorKind.INVALID_OUTPUT,
)
ANSWERED = (*map(str, SHORTFALLS), "incomplete")  # answered, not ok, sent again by name alone


class Resend(Struct, frozen=True):
    """Which complete rows are sent again."""

    failed: bool = False
    kinds: frozenset[str] = frozenset()  # of these alone: error kinds, words of `ANSWERED`
    changed: bool = False  # those whose request is another one now

    @property
    def is_asked(self) -> bool:
        return self.failed or self.changed


NOTHING_SENT_AGAIN = Resend()


class Pilot(Struct, frozen=True):
    """Random rows, drawn to estimate by them what all will cost."""

    rows: tuple[int, ...]  # places in the input, in the order they were drawn
    of: int  # rows that the source had then


class Estimated(Struct, frozen=True):
    """A pilot's estimate of the whole run, dollars of complete rows included."""

    at: int
    pilot_rows: int  # that it is based on
    rows: int  # that it is for
    output_tokens: int
    cost_usd: float | None  # null where a price is missing
    low_usd: float | None  # nine of ten times it is between these
    high_usd: float | None


class Judged(Struct, frozen=True):
    """Rows whose outcomes an exit code has told."""

    rows: int = 0
    ok: int = 0


class RunRecord(Struct, frozen=True):
    """`run.json`: what was asked, and how far the run has come. Never a secret."""

    schema_version: int
    hash_rule: int  # the version of the rule behind `request_hash`
    batchrun: str  # the version that wrote this
    python: str
    state: str  # running, finished, stopped, interrupted, failed
    command: str | None  # the command that goes on; null for a run begun from the library
    simulated: bool
    source: str  # the prompt set, relative to the run directory; `-` for standard input
    job: JsonObject  # the sections as asked, headers by name only
    layout: Layout
    store_request: bool
    rows: int  # in the source when it was last planned, times samples and variants
    started_at: int
    updated_at: int
    exit_code: int | None = None  # of the command that last ended; null while running
    message: str | None = None  # why it stopped
    source_path: str = ""  # the prompt set in full; empty for standard input
    input_sha256: str | None = None  # of what came from standard input
    totals: Totals = Totals()
    unknown_usd: float = 0.0  # reserved under a cap for attempts that reported no usage
    gone: Totals = Totals()  # rows of the tables that were removed from the input; not in `totals`
    pilot: Pilot | None = None
    estimated: Estimated | None = None
    parts: dict[str, int] = field(default_factory=dict)  # of both tables, to their rows
    higher_cap_usd: float | None = (
        None  # one that lets the remaining rows be sent, where the budget ended it
    )
    older_schema: int | None = None  # that some parts may still have; null: none has
    again: int = 0  # rows that have an outcome and are still to be sent again, as the command asked
    met_error: str | None = None  # in which many rows agreed when the last command stopped
    sampled: Pilot | None = None  # random rows of `--sample-rows`, the first N of which are meant
    imported: bool = False  # its answers were produced elsewhere; it cannot be run
    appends: bool = False  # inputs hold further rows only; rows that they lack stay
    judged: Judged = Judged()  # rows that earlier commands ended with, which are not judged again
    source_commit: str | None = None  # of a data set of the Hub, which the run stays with
    store: str | None = None  # the run's URL, where its tables are in a store
    executor: str = "local"  # where the requests of the last command were sent from
    workers: int = 0  # that it asked for; 0: it sent them itself
    writers: int = 1  # ids given so far, also to workers that never wrote: none is given again
    left_out: int = 0  # of `rows`, those without an outcome that `--where` leaves out
    asked: int | None = None  # of `rows`, complete once the last command is done; null: not known
    beyond_pilot: int | None = None  # rows asked for beside those of the pilot; null: as `asked`

    def left(self, stored: int) -> tuple[int, int]:
        """Rows of the source without an outcome; of them, those that the last command left.

        `stored`: rows in the tables, with those that are no longer in the input.
        """
        left = max(0, self.rows - (stored - self.gone.rows))
        asked = self.rows if self.asked is None else self.asked
        return left, max(0, min(left, self.rows - asked))
