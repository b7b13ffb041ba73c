"""The kinds of faults, which strike at a rate, and of quirks, which every answer has."""

from enum import StrEnum


class Fault(StrEnum):
    """What an attempt can meet instead of a whole answer."""

    RATE_LIMIT_HINT = "429_hint"  # with Retry-After
    RATE_LIMIT_BARE = "429_bare"  # without a word on when to come back
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
    RESET_WITHIN = "reset_within"  # the connection is reset amid the body
    TRUNCATED_JSON = "truncated_json"  # whole by HTTP, but the JSON breaks off
    NO_HEADERS = "no_headers"  # nothing ever comes, no answer was made
    ENDLESS_BODY = "endless_body"  # a piece now and then, without an end
    STALLED_BODY = "stalled_body"  # a first piece, then nothing
    QUOTA = "quota"  # 429 that no waiting cures

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
    RESOURCE_UNAVAILABLE = "429_resource"  # flex has no room

    # billing, keys, walls
    CREDIT = "429_credit"  # type insufficient_quota, code credit_balance_exhausted
    QUOTA_FLATTENED = "429_quota_flattened"  # litellm: the original JSON inside `message`
    PAYMENT = "402_billing"
    KEY = "401_key"
    KEY_QUOTA = "401_quota"  # new-api: the token's quota is used up
    USER_QUOTA = "403_quota"  # new-api: insufficient_user_quota
    CHARGE_QUOTA = "403_charge"  # new-api: pre_consume_token_quota_failed
    REGION = "403_region"
    FIREWALL = "403_html"

    # the request is wrong, or said to be
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

    # new-api's 500s that no second try cures, and one that it does
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
    STREAM_RESET = "stream_reset"  # the connection is reset amid the events


class Quirk(StrEnum):
    """What a gateway does to every answer."""

    # how a stream is written
    NO_EVENT_LINES = "no_event_lines"
    PINGS = "pings"  # `: PING` comments
    CRLF = "crlf"
    NO_SPACE = "no_space"  # `data:{`
    SPLIT_DATA = "split_data"  # several `data:` lines for an event
    CUT_BYTES = "cut_bytes"  # pieces that end anywhere, amid a character too
    DONE = "done"  # `data: [DONE]` at the end
    NO_LAST_BLANK = "no_last_blank"  # the last event without its blank line
    STAYS_OPEN = "stays_open"  # after the terminal event

    # what its events say
    NO_SEQUENCE_NUMBERS = "no_sequence_numbers"
    REPEATED_CREATED = "repeated_created"
    NO_FINAL_OUTPUT = "no_final_output"  # only output_item.done carry the items
    COMPLETED_INCOMPLETE = "completed_incomplete"  # response.completed with status incomplete

    # another way than the one asked for
    SSE_FOR_JSON = "sse_for_json"
    JSON_FOR_SSE = "json_for_sse"
    JSON_AS_SSE = "json_as_sse"  # the same, called text/event-stream
    AT_ONCE = "at_once"  # background was asked for
    LOST_BACKGROUND = "lost_background"  # created, then 404 on GET
    FLAKY_POLLS = "flaky_polls"  # each first of two GETs is a 502

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
    UNKNOWN_ITEM = "unknown_item"  # an output item of a type that nobody knows
    OTHER_REQUEST_ID = "other_request_id"  # x-oneapi-request-id in its place


NEVER_ENDING = frozenset({Fault.NO_HEADERS, Fault.ENDLESS_BODY, Fault.STALLED_BODY})
SPREAD: tuple[Fault, ...] = (
    Fault.RATE_LIMIT_HINT,
    Fault.RATE_LIMIT_BARE,
    Fault.SERVER_ERROR_JSON,
    Fault.SERVER_ERROR_HTML,
    Fault.SERVER_ERROR_EMPTY,
    Fault.BAD_GATEWAY_JSON,
    Fault.BAD_GATEWAY_HTML,
    Fault.BAD_GATEWAY_EMPTY,
    Fault.UNAVAILABLE_JSON,
    Fault.UNAVAILABLE_HTML,
    Fault.UNAVAILABLE_EMPTY,
    Fault.ERROR_200,
    Fault.RESET_BEFORE,
    Fault.RESET_WITHIN,
    Fault.TRUNCATED_JSON,
)
EXCLUSIVE: tuple[frozenset[Quirk], ...] = (
    frozenset({Quirk.NO_USAGE, Quirk.NULL_USAGE, Quirk.ZERO_USAGE}),
    frozenset({Quirk.NULL_DETAILS, Quirk.NO_DETAILS}),
    frozenset({Quirk.JSON_FOR_SSE, Quirk.JSON_AS_SSE}),
)
