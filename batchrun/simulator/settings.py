"""How a simulated server behaves: its settings, and the faults and quirks that it can have.

A fault affects single attempts, at a rate; a quirk affects every answer. `batchrun simulate` makes
its options from the fields of `SimulatorSettings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import islice
from math import isfinite
from typing import Any

from batchrun.simulator.knowledge.known_answers import KnownAnswers, read_abilities, read_answers


class Fault(StrEnum):
    """What an attempt can get instead of a whole answer."""

    RATE_LIMIT_HINT = "429_hint"  # with Retry-After
    RATE_LIMIT_BARE = "429_bare"  # without a hint when to retry
    SERVER_ERROR_JSON = "500_json"
    SERVER_ERROR_HTML = "500_html"
    SERVER_ERROR_EMPTY = "500_empty"
    BAD_GATEWAY_JSON = "502_json"
    BAD_GATEWAY_HTML = "502_html"
    BAD_GATEWAY_EMPTY = "502_empty"
    UNAVAILABLE_JSON = "503_json"
    UNAVAILABLE_HTML = "503_html"
    UNAVAILABLE_EMPTY = "503_empty"
    ERROR_200 = "error_200"  # HTTP 200 whose body is an `error`
    RESET_BEFORE = "reset_before"  # the connection is reset, no answer was made
    RESET_WITHIN = "reset_within"  # the connection is reset within the body
    TRUNCATED_JSON = "truncated_json"  # whole by HTTP, but the JSON breaks off
    NO_HEADERS = "no_headers"  # nothing ever comes, no answer was made
    ENDLESS_BODY = "endless_body"  # a small piece every 50 ms, without an end
    STALLED_BODY = "stalled_body"  # a first piece, then nothing
    QUOTA = "quota"  # 429 that waiting does not clear

    # 429 and its ways to say when
    RATE_LIMIT_EMPTY = "429_empty"  # no body, no header
    RATE_LIMIT_MS = "429_ms"  # retry-after-ms alone
    RATE_LIMIT_FLOAT = "429_float"  # Retry-After with a fraction
    RATE_LIMIT_DATE = "429_date"  # Retry-After as an HTTP date
    RATE_LIMIT_RENAMED = "429_renamed"  # llm_provider-retry-after
    RATE_LIMIT_WORDS = "429_words"  # "Please try again in 20ms." and nothing else
    RATE_LIMIT_AZURE = "429_azure"  # code "429", "Please retry after 6 seconds."
    RATE_LIMIT_DAY = "429_day"  # Retry-After: 86400
    RATE_LIMIT_CHINESE = "429_chinese"  # new-api's limit for a user
    SLOW_DOWN = "429_slow_down"
    TOO_LARGE_FOR_LIMIT = "429_too_large"  # one request above the tokens a minute
    RESOURCE_UNAVAILABLE = "429_resource"  # no capacity for flex

    # billing, keys, firewalls
    CREDIT = "429_credit"  # type insufficient_quota, code credit_balance_exhausted
    QUOTA_FLATTENED = "429_quota_flattened"  # litellm: the original JSON inside `message`
    PAYMENT = "402_billing"
    KEY = "401_key"
    KEY_QUOTA = "401_quota"  # new-api: the token's quota is used up
    USER_QUOTA = "403_quota"  # new-api: insufficient_user_quota
    CHARGE_QUOTA = "403_charge"  # new-api: pre_consume_token_quota_failed
    REGION = "403_region"
    FIREWALL = "403_html"

    # the request is wrong, or is said to be
    LLAMA = "400_int_code"  # llama.cpp: `code` is a number
    CONTEXT = "400_context"
    POLICY = "400_policy"
    SHOULD_RETRY = "400_should_retry"  # x-should-retry: true
    WRONG_URL = "404_url"
    TIMED_OUT = "408_json"
    CONFLICT = "409_json"
    BODY_TOO_LARGE = "413_json"
    DETAIL_LIST = "422_detail"  # FastAPI
    DETAIL_TEXT = "422_text"  # `detail` is text
    REDIRECT = "307_redirect"

    # new-api's 500s that a retry does not cure, and one that it does
    CONVERT = "500_convert_request_failed"
    INVALID = "500_invalid_request"
    SENSITIVE = "500_sensitive_words"
    COUNT = "500_count_token_failed"
    PRICE = "500_model_price_error"
    BAD_BODY = "500_bad_response_body"
    DO_REQUEST = "500_do_request_failed"

    # other shapes of server errors
    SHOULD_NOT_RETRY = "500_should_not_retry"  # x-should-retry: false
    SSE_500 = "500_sse"  # an event stream as the body
    TEXT_500 = "500_text"
    ERROR_TEXT = "500_error_text"  # {"error": "..."}
    SUCCESS_FALSE = "500_success_false"  # {"success": false, "message": "..."}
    MESSAGE = "500_message"
    MSG = "500_msg"
    ERROR_MSG = "500_error_msg"
    RESPONSE_ERROR = "500_response_error"  # {"response": {"error": {...}}}
    NOT_IMPLEMENTED = "501_json"
    NO_CHANNEL = "503_model_not_found"
    GATEWAY_TIMEOUT_HTML = "504_html"
    CLOUDFLARE_UNKNOWN = "520_html"
    CLOUDFLARE_TIMEOUT = "524_html"
    CLOUDFLARE_PROBLEM = "524_problem"
    OVERLOADED = "529_json"
    HTML_200 = "html_200"
    EMPTY_200 = "empty_200"

    # answers that are responses
    FAILED = "failed"  # status failed, server_error
    FAILED_PROMPT = "failed_prompt"  # status failed, invalid_prompt
    CONTENT_FILTER = "content_filter"  # status incomplete, by a filter

    # streams
    STREAM_ERROR_FLAT = "stream_error_flat"
    STREAM_ERROR_NESTED = "stream_error_nested"
    STREAM_ERROR_NULL_CODE = "stream_error_null_code"
    STREAM_ERROR_RENAMED = "stream_error_renamed"  # type response.error
    STREAM_ERROR_FAILED = "stream_error_failed"  # followed by response.failed
    STREAM_ERROR_QUOTA = "stream_error_quota"  # nested, credit_balance_exhausted
    STREAM_ERROR_RATE = "stream_error_rate"  # nested, Azure's too_many_requests
    STREAM_END = "stream_end"  # a clean end without a terminal event
    STREAM_RESET = "stream_reset"  # the connection is reset between the events


class Quirk(StrEnum):
    """What a gateway does to every answer."""

    # how a stream is written
    NO_EVENT_LINES = "no_event_lines"
    PINGS = "pings"  # `: PING` comments
    CRLF = "crlf"
    NO_SPACE = "no_space"  # `data:{`
    SPLIT_DATA = "split_data"  # several `data:` lines for an event
    CUT_BYTES = "cut_bytes"  # pieces that end anywhere, even within a character
    DONE = "done"  # `data: [DONE]` at the end
    NO_LAST_BLANK = "no_last_blank"  # the last event without its blank line
    STAYS_OPEN = "stays_open"  # after the terminal event

    # what its events say
    NO_SEQUENCE_NUMBERS = "no_sequence_numbers"
    REPEATED_CREATED = "repeated_created"
    NO_FINAL_OUTPUT = "no_final_output"  # only output_item.done carry the items
    COMPLETED_INCOMPLETE = "completed_incomplete"  # response.completed with status incomplete

    # another mode than the one asked for
    SSE_FOR_JSON = "sse_for_json"
    JSON_FOR_SSE = "json_for_sse"
    JSON_AS_SSE = "json_as_sse"  # the same, called text/event-stream
    AT_ONCE = "at_once"  # background was asked for
    LOST_BACKGROUND = "lost_background"  # created, then 404 on GET
    FLAKY_POLLS = "flaky_polls"  # every other GET is a 502, beginning with the first

    # what a response says
    NO_USAGE = "no_usage"
    NULL_USAGE = "null_usage"
    ZERO_USAGE = "zero_usage"
    NULL_DETAILS = "null_details"  # of usage: each count in them is null
    NO_DETAILS = "no_details"
    COMPLETED_THOUGH_CUT = "completed_though_cut"
    NAN = "nan"
    SURROGATES = "surrogates"  # lone ones in texts
    RENAMED_MODEL = "renamed_model"  # gpt-4.1-data
    FLOAT_TIMES = "float_times"
    EXTRAS = "extras"  # content_filters, usage.cost, x-litellm-response-cost
    OTHER_ECHO = "other_echo"  # the echo is that of another request
    UNKNOWN_ITEM = "unknown_item"  # an output item of an unknown type
    OTHER_REQUEST_ID = "other_request_id"  # x-oneapi-request-id instead of x-request-id


NEVER_ENDING = frozenset({Fault.NO_HEADERS, Fault.ENDLESS_BODY, Fault.STALLED_BODY})
# what `faults` spreads its rate over: the kinds before `quota`, without those that never end
SPREAD = tuple(fault for fault in islice(Fault, 18) if fault not in NEVER_ENDING)
EXCLUSIVE = (
    frozenset({Quirk.NO_USAGE, Quirk.NULL_USAGE, Quirk.ZERO_USAGE}),
    frozenset({Quirk.NULL_DETAILS, Quirk.NO_DETAILS}),
    frozenset({Quirk.JSON_FOR_SSE, Quirk.JSON_AS_SSE}),
)


def _setting(
    default: Any,
    text: str,
    *,
    option: str | None = None,
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
    shown: bool = True,
) -> Any:
    """A field with its help text, its bounds, and its option where that has another name."""
    about = {"help": text, "option": option, "metavar": metavar, "least": least, "most": most}
    if isinstance(default, type):
        return field(default_factory=default, metadata=about)
    return field(default=default, repr=shown, metadata=about)


def _rate(text: str) -> Any:
    return _setting(0.0, text, metavar="RATE", least=0, most=1)


def _flag(option: str, text: str) -> Any:
    """True unless the option is given."""
    return _setting(default=True, text=text, option=option)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """All that can be set; rates lie between 0 and 1. Raises `ValueError` for a wrong value."""

    seed: int = _setting(0, "The same seed gives the same answers and the same faults.")
    latency_s: float = _setting(
        0.05, "Median seconds until an answer; each attempt draws its own.", least=0
    )
    latency_spread: float = _setting(
        0.35, "Sigma of the lognormal distribution of latencies; 0: always the median.", least=0
    )
    output_tokens: float = _setting(60.0, "Median length of a text answer, in tokens.", least=1)
    output_spread: float = _setting(
        0.8, "Sigma of the lognormal distribution of lengths; 0: always the median.", least=0
    )
    requests_per_minute: float | None = _setting(
        None, "Requests a minute for each model; more get 429.", option="--rpm", least=0.001
    )
    tokens_per_minute: float | None = _setting(
        None, "Tokens a minute for each model; more get 429.", option="--tpm", least=0.001
    )
    burst_s: float = _setting(
        60.0, "How many seconds' worth of --rpm and --tpm may arrive at once.", least=0.001
    )
    hints: bool = _flag("--no-hints", "Send no x-ratelimit-* and no Retry-After headers.")
    max_in_flight: int | None = _setting(
        None, "Most requests in flight; one more gets 503.", least=0
    )
    quota: int | None = _setting(
        None, "Number of answers after which every request gets 429 insufficient_quota.", least=0
    )
    api_key: str | None = _setting(
        None,
        "Require the bearer key in this environment variable; other keys get 401.",
        option="--require-key-env",
        metavar="NAME",
        shown=False,
    )
    models: tuple[str, ...] = _setting(
        (),
        "Name of a model to serve; repeatable. Others get 404; default: any name is accepted.",
        option="--model",
        metavar="NAME",
    )
    faults: float = _rate("Share of attempts with a fault, in equal parts over the kinds below.")
    fault_rates: Mapping[str, float] = _setting(
        dict,
        "Share of attempts with this kind of fault; repeatable, wins over --faults.",
        option="--fault",
        metavar="KIND=RATE",
    )
    quirks: tuple[Quirk, ...] = _setting(
        (), "A quirk that every answer has; repeatable.", option="--quirk", metavar="NAME"
    )
    retry_after_s: float = _setting(
        1.0, "Seconds to wait that 429_hint and similar faults ask for.", least=0
    )
    bad_arguments: float = _rate(
        "Share of function calls whose arguments are malformed or do not fit their schema."
    )
    bad_output: float = _rate(
        "Share of structured answers that are malformed or do not fit their schema."
    )
    refusals: float = _rate("Share of answers that are a refusal.")
    answers: tuple[str, ...] = _setting(
        (),
        "Prompt set with the targets that the model knows; repeatable, rows join by their ids.",
        metavar="FILE",
    )
    right: tuple[str, ...] = _setting(
        (),
        "Share of right answers, default 1; SPREAD: how questions differ. Repeatable.",
        metavar="[MODEL=]P[,SPREAD]",
    )
    accepts: bool = _flag("--never-accept", "Accept no connection: attempts to connect hang.")

    def __post_init__(self) -> None:
        named: Any = {"fault": (self.fault_rates, Fault), "quirk": (self.quirks, Quirk)}
        for what, (names, kinds) in named.items():
            for name in names:
                if name not in set(kinds):
                    raise ValueError(f"no {what} is called {name!r}; there are {', '.join(kinds)}")
        object.__setattr__(self, "quirks", tuple(Quirk(name) for name in self.quirks))
        for rivals in EXCLUSIVE:
            if len(rivals.intersection(self.quirks)) > 1:
                raise ValueError(f"of the quirks {', '.join(sorted(rivals))} one can be chosen")
        values = [(one.name, getattr(self, one.name), one.metadata) for one in fields(self)]
        bounds: Any = {"least": 0, "most": 1}
        values += [(f"fault {name}", rate, bounds) for name, rate in self.fault_rates.items()]
        for name, value, bounds in values:
            if bounds.get("least") is None or value is None:
                continue
            if bounds["most"] == 1 and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; a rate lies between 0 and 1")
            if not (value >= bounds["least"] and isfinite(value)):
                raise ValueError(f"{name} is {value}; it must be at least {bounds['least']:g}")
        total = sum(self.rates().values())
        if total > 1 + 1e-9:
            raise ValueError(f"the rates of faults add up to {total:.4g}; 1 is the most")
        if self.api_key is not None and not self.api_key:
            raise ValueError("api_key is empty; give a key, or none at all")
        read_abilities(self.right)
        if self.right and not self.answers:
            raise ValueError("right needs answers: the file with the targets that the model knows")

    def known_answers(self) -> KnownAnswers | None:
        """What the model knows. Raises `ValueError` where its file cannot be read."""
        if not self.answers:
            return None
        return read_answers(self.answers, read_abilities(self.right))

    def rates(self) -> dict[Fault, float]:
        """The rate of each kind of fault, those of 0 left out."""
        part = self.faults / len(SPREAD)
        rates: dict[Fault, float] = dict.fromkeys(SPREAD, part)
        rates.update((Fault(name), rate) for name, rate in self.fault_rates.items())
        return {fault: rates[fault] for fault in Fault if rates.get(fault)}
