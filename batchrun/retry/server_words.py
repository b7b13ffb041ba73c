"""What servers and gateways call their errors: codes, parts of codes, words of messages. Data only.

From their documentation and from reports of their users. A code is compared without case and
separators: `Throttling.RateQuota`, `rate_limit_exceeded` and `RateLimitReached` need no spelling
of their own.
"""

import re

from msgspec import Struct

from batchrun.errors import ErrorKind

_SEPARATORS = re.compile(r"[^a-z0-9]+")
_AFTER = re.compile(r"(?s)^.*#|:https?://.*$")  # AWS: `com.amazon.coral#X`, `X:http://internal...`


def plain(code: str) -> str:
    """A code as these tables write it: lower-case letters and digits alone."""
    return _SEPARATORS.sub("", _AFTER.sub("", code).lower())


def _table(kinds: dict[ErrorKind, str]) -> dict[str, ErrorKind]:
    return {plain(code): kind for kind, codes in kinds.items() for code in codes.split()}


# Money or quota is used up, whatever the message says besides. Not `insufficient_quota`: Alibaba
# says it of tokens a minute.
_SPENT = (
    "credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded "
    "organization_usage_limit_exceeded enforced_spend_limit_reached billing_hard_limit_reached "
    "billing_not_active account_deactivated insufficient_user_quota budget_exceeded "
    "pre_consume_token_quota_failed exceeded_current_quota_error Arrearage AccountOverdueError 402"
)
SPENT = frozenset(_table({ErrorKind.QUOTA: _SPENT}))
# The same as part of a code: `insufficient_balance`, `key_budget_exceeded`,
# `personal-team-blocked:spending-limit`, `AllocationQuota.FreeTierOnly`. Some use such codes for
# rate limits too, so that the message may say otherwise.
SPENT_PARTS = re.compile(
    r"insufficient(user|account)?(quota|balance|credit|fund)|"
    r"(balance|credit|fund)s?(insufficient|exhausted|depleted|toolow|limit)|"
    r"notenough(balance|credit|fund)|nocredit|arrear|overdue|"
    r"budget(limit)?(exceeded|exhausted)|exceededbudget|overbudget|spend(ing)?(limit|cap)|"
    r"billing|paymentrequired|freetieronly|quoteexceeded|usagelimitreached"
)

CODES = _table(
    {
        ErrorKind.RATE_LIMIT: "rate_limit_exceeded rate_limit_error too_many_requests "
        "throttling_error ratelimitreached slow_down limit_requests 429 "
        "2009",  # Cloudflare's AI Gateway: 401 "Unauthorized", gone once less is sent
        ErrorKind.OVERLOADED: "server_is_overloaded service_unavailable_error overloaded_error "
        "ModelNotReadyException 503 529",
        ErrorKind.SERVER_ERROR: "vector_store_timeout failed_to_download_image do_request_failed",
        ErrorKind.UNREADABLE: "bad_response_body",
        ErrorKind.TOO_LONG: "context_length_exceeded exceed_context_size_error "
        "string_above_max_length",
        ErrorKind.CONTENT_POLICY: "invalid_prompt content_policy_violation "
        "image_content_policy_violation misalignment_policy_violation content_filter "
        "sensitive_words_detected prompt_blocked bio_policy hooks_failed",
        ErrorKind.UNAUTHORIZED: "invalid_api_key authentication_error",
        ErrorKind.FORBIDDEN: "permission_error unsupported_country_region_territory "
        "organization_restricted",
        ErrorKind.NOT_FOUND: "api_not_implemented model_not_found",
        # First 500s of a gateway that come back the same at every attempt, then reasons of a
        # `failed` response, within a 200, that are about the request.
        ErrorKind.BAD_REQUEST: "invalid_request count_token_failed model_price_error "
        "convert_request_failed "
        "data_residency_mismatch invalid_image invalid_image_format invalid_base64_image "
        "invalid_image_url invalid_image_mode image_too_large image_too_small image_parse_error "
        "image_file_too_large image_file_not_found unsupported_image_media_type empty_image_file",
    }
)

# Parts of codes; the first that is found counts.
_PARTS = {
    # An object that the row names: the endpoint is well.
    ErrorKind.BAD_REQUEST: "(response|conversation|file|vectorstore|container|item|image|prompt)s?"
    "(id)?notfound",
    ErrorKind.CONTENT_POLICY: "content(filter|policy|risk|moderation|violation)|datainspection|"
    "sensitive|moderation|guardrail|(safety|policy)(violation|check|block)|promptblocked|"
    "prohibitedcontent|unsafe",
    ErrorKind.TOO_LONG: "context(length|size|window)|"
    "(prompt|input|context|tokens|characters)too(long|large)",
    ErrorKind.RATE_LIMIT: "ratelimit|ratequota|throttl|toomanyrequests|requestlimit|burstrate|"
    "resourceexhausted|(rpm|tpm|qps|concurrency)(limit|exceeded|reached)",
    ErrorKind.OVERLOADED: "overload|capacityexceeded|(engine|server)(is)?busy",
    ErrorKind.NOT_FOUND: "modelnot(found|exist|available|supported|open)|deploymentnotfound|"
    "endpointormodelnotfound|(invalid|unknown|unsupported|nosuch)model(name|id)?$",
    ErrorKind.UNAUTHORIZED: "(invalid|incorrect|expired|missing)(api|access)(key|token)$|"
    "apikey(invalid|notvalid|expired|notfound)|unauthenticated",
}
CODE_PARTS = tuple((re.compile(part), kind) for kind, part in _PARTS.items())

STATUSES: dict[int, ErrorKind] = {
    401: ErrorKind.UNAUTHORIZED,
    402: ErrorKind.QUOTA,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.NOT_FOUND,
    407: ErrorKind.PROXY,
    408: ErrorKind.BUSY,
    409: ErrorKind.BUSY,
    410: ErrorKind.NOT_FOUND,  # a model or an API that has been taken away
    413: ErrorKind.TOO_LONG,
    420: ErrorKind.RATE_LIMIT,
    421: ErrorKind.BUSY,  # this connection leads elsewhere; another may not
    423: ErrorKind.BUSY,
    424: ErrorKind.SERVER_ERROR,  # of the server behind it
    425: ErrorKind.BUSY,
    429: ErrorKind.RATE_LIMIT,
    446: ErrorKind.CONTENT_POLICY,  # Portkey's guardrails
    449: ErrorKind.BUSY,
    460: ErrorKind.SERVER_ERROR,  # a load balancer and a proxy that took us for gone
    498: ErrorKind.OVERLOADED,  # Groq: the flex tier is full
    499: ErrorKind.SERVER_ERROR,
    501: ErrorKind.NOT_FOUND,
    503: ErrorKind.OVERLOADED,
    504: ErrorKind.GATEWAY_TIMEOUT,
    524: ErrorKind.GATEWAY_TIMEOUT,
    529: ErrorKind.OVERLOADED,
}

_ANY = frozenset(range(200, 600))
_UP_TO = r"\W+(?:\w+\W+){0,%d}?"  # other words between two


class Words(Struct, frozen=True):
    """Words of messages that tell a kind, where the status is one of these."""

    kind: ErrorKind
    statuses: frozenset[int]
    pattern: re.Pattern[str]


def _words(kind: ErrorKind, statuses: frozenset[int], *patterns: str) -> Words:
    return Words(kind, statuses, re.compile("(?i)" + "|".join(patterns)))


MONEY = _words(
    ErrorKind.QUOTA,
    frozenset({200, 400, 401, 403, 412, 429, 500}),
    # The codes again, in a message that repeats them.
    r"insufficient_(?:user_)?quota|credit_balance_exhausted|_(?:spend|usage)_limit_exceeded|"
    r"enforced_spend_limit_reached|billing_hard_limit_reached|billing_not_active|"
    r"account_deactivated|pre_consume_token_quota_failed|exceeded_current_quota",
    rf"\b(?:insufficient|not enough|run out of|out of|used (?:up )?all){_UP_TO % 3}"
    r"(?:balance|credits?|funds)\b",
    rf"\b(?:balance|credits?|funds)(?: limit)?{_UP_TO % 2}"
    r"(?:insufficient|too low|exhausted|depleted|expired|used up|overdue|exceeded)\b",
    r"\bdo(?:es)?(?:n.t| not) have any credits|\brequires more credits|\bno (?:more )?credits left",
    r"\boverdue (?:balance|payment|bill)|\bin arrears|\barrearage|payment is overdue|"
    r"\bfailure to pay",
    rf"\b(?:spend(?:ing)?|billing|hard|budget) (?:limit|cap){_UP_TO % 3}"
    r"(?:reached|exceeded|exhausted|hit)\b",
    rf"\b(?:reached|reaching|exceeded|hit){_UP_TO % 4}(?:(?:spend(?:ing)?|billing) (?:limit|cap)|"
    r"api usage limits?|included credits|current quota)\b",
    r"\bbudget (?:has been |is )?(?:exceeded|exhausted)|\bexceeded ?budget|\b(?:over|crossed) "
    r"budget",
    r"\bkey limit exceeded",
    rf"\b(?:exhausted|used up){_UP_TO % 3}free (?:trial|tier|daily|quota|allocation)|"
    rf"\bfree (?:tier|quota|trial){_UP_TO % 5}exhausted",
    "余额不足|额度不足|额度已用尽|预扣费|欠费",
)
# Where a message says this too, waiting helps: Gemini and Alibaba call limits of a minute a quota
# and write of billing.
NOT_MONEY = re.compile(
    r"(?i)\bper (?:minute|min|second|sec|hour)\b|\brate[ -]limit(?:s|ed)?\b|\b[rt]pm\b|"
    r"(?:retry|try again) (?:in|after) [0-9]|\btoken-limit\b"
)

# The row's own objects, which no longer exist or were never the key's.
_OBJECT = r"(?:previous[ _]response|conversation|vector[ _]store|file_id|file object)s?"
OBJECT = re.compile(
    rf"(?i)\b{_OBJECT}\b.{{0,120}}?\b(?:not (?:be )?found|no longer|not exist|expired|deleted|"
    rf"no access|not (?:have )?access)|"
    rf"\b(?:no such|could not find|unknown|not have access to(?: the)?) {_OBJECT}\b|"
    r"\b(?:response|item|message|prompt|conversation|container|file|vector store)s? (?:with id )?"
    r"\W?(?:resp|rs|msg|fc|conv|pmpt|cntr|c?file|vs)[-_]"
)

WORDS = (
    _words(
        ErrorKind.CONTENT_POLICY,
        frozenset({200, 400, 403, 422, 424, 451}),
        r"\bflagged\b|\bmoderation\b|\bcontent[ _](?:management |filtering )?policy|"
        r"\bcontent filter|\b(?:usage|content|community) (?:policy|policies|guidelines)\b|"
        r"\bsafety (?:system|check|filter|polic)|\bguardrails?\b|\bharmful content|"
        r"\b(?:inappropriate|sensitive|unsafe|prohibited)\b.{0,20}\b(?:content|information)|"
        r"\bcontent exists risk|\bconsidered high risk|\bblocked due to security config",
        "敏感|不安全|违规内容|内容安全",
    ),
    _words(
        ErrorKind.TOO_LONG,
        frozenset({200, 400, 413, 422, 500}),
        r"\bmaximum context length|\b(?:context|prompt|input) (?:length|window|size)\b.{0,60}\b"
        r"(?:exceed|larger|longer|too)|\bexceeds?\b.{0,40}\bcontext (?:length|window|size)|"
        r"\b(?:prompt|input|request) (?:is )?too long\b|\b(?:prompt|input) tokens too long|"
        r"\brange of input length\b|\binput token count\b.{0,30}\bexceeds|"
        r"\bprompt exceeds max length|\breduce the length of",
    ),
    _words(
        ErrorKind.RATE_LIMIT,
        _ANY,
        r"\brate[ _-]?limit(?:s|ed|ing)?\b.{0,30}\b(?:exceed|reach|hit)|\brate[ -]limited\b|"
        r"\b(?:exceed|reach|hit)\w*\b.{0,40}\brate[ _-]?limits?\b|"
        r"\btoo many requests\b|\bthrottl(?:ed|ing)\b|"
        r"\b(?:requests|tokens|queries) (?:per|a) (?:minute|second|hour|day)\b",
        r"\b(?:http|status|code|error)\W{1,3}(?:code\W{1,3})?429\b|^429\b",
        "负载已饱和|请求数限制|请求过于频繁|频率限制|限流",
    ),
    _words(ErrorKind.OVERLOADED, _ANY, "无可用渠道"),
    _words(
        ErrorKind.UNAUTHORIZED,
        frozenset({400}),
        r"\bapi[ _-]?key (?:is )?(?:not valid|invalid|expired)|"
        r"\b(?:invalid|incorrect|expired) (?:x-)?api[ _-]?key\b",
    ),
    _words(ErrorKind.FORBIDDEN, frozenset({400}), r"\blocation is not supported"),
    _words(
        ErrorKind.NOT_FOUND,
        frozenset({200, 400, 422}),
        r"\binvalid model name\b|\b(?:no such|unknown) model\b|"
        r"\bmodel (?:does )?not (?:exist|found)|"
        r"\bmodel \W?[\w./:@-]+\W? (?:(?:is |was )?not (?:found|supported|available|exist)|"
        r"(?:does not|doesn.t) exist|has been (?:deprecated|decommissioned|retired))",
        "模型不存在",
    ),
)
# An account that was shut for what it sent before is no refusal of one row.
ACCOUNT = re.compile(
    r"(?i)\b(?:your|this) (?:account|organi[sz]ation|team|project|access|(?:api )?key)\b"
    r"(?! id)|\b(?:account|access|key) (?:is|was|has been|terminated|suspended)"
)
