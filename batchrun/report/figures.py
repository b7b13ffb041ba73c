"""What came of a run, in figures: the nouns of its report, frozen."""

from msgspec import Struct

from batchrun.records import Estimated
from batchrun.report.samples import Sample
from batchrun.report.timeline import Timeline


class OutcomeRows(Struct, frozen=True):
    """Rows that came to the same."""

    outcome: str  # ok, truncated, refused, else the row's `status`
    rows: int
    output_tokens: int
    cost_usd: float | None


class ModelRows(Struct, frozen=True):
    """Rows that one model answered, at one tier."""

    model: str | None  # as the server says; where none answered, as asked for
    service_tier: str | None
    rows: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float | None


class Tokens(Struct, frozen=True):
    """Sums over the answers that counted; parts of input and output are in them."""

    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int


class Spread(Struct, frozen=True):
    """Percentiles of one column over the rows that have it."""

    name: str
    rows: int
    p50: float
    p90: float
    p99: float
    max: float


class TryKind(Struct, frozen=True):
    """Attempts of one kind."""

    kind: str  # first, retry, reask, hedge
    attempts: int
    failed: int
    cost_usd: float | None


class ErrorRows(Struct, frozen=True):
    """One kind of error: how many attempts met it, and how many rows ended with it."""

    kind: str
    attempts: int
    rows: int
    example: str


class ToolRows(Struct, frozen=True):
    """Calls of one tool."""

    name: str  # its type where it has no name
    calls: int
    valid: int
    invalid: int  # arguments that are no JSON or do not fit the schema; the rest nobody can judge


class TopRow(Struct, frozen=True):
    """A row that took long, or cost much."""

    custom_id: str
    outcome: str
    attempts: int
    elapsed_s: float | None  # from its first send to its end, without waits between commands
    output_tokens: int | None
    cost_usd: float | None


class Bin(Struct, frozen=True):
    """One bar of a histogram."""

    low: float
    high: float
    rows: int


class Report(Struct, frozen=True):
    """All that the terminal's page and the HTML page show."""

    run: str
    state: str  # as `status` says it
    simulated: bool
    source: str
    rows: int  # in the tables
    gone: int  # of them, rows that left the input
    left: int  # rows of the source without an outcome
    started_at: int | None  # the first send
    finished_at: int | None  # the last end
    cost_usd: float | None
    reported_cost_usd: float | None
    unknown_attempts: int  # those whose cost is not known: it is in no sum
    unknown_usd: float  # at most so much more, for tries that never told what they cost
    estimated: Estimated | None  # by a pilot, before the rest was sent
    outcomes: tuple[OutcomeRows, ...]
    models: tuple[ModelRows, ...]
    tokens: Tokens
    spreads: tuple[Spread, ...]
    tries: tuple[TryKind, ...]
    errors: tuple[ErrorRows, ...]
    tools: tuple[ToolRows, ...]
    slowest: tuple[TopRow, ...]
    dearest: tuple[TopRow, ...]
    latency_bins: tuple[Bin, ...]
    first_token_bins: tuple[Bin, ...]
    timeline: Timeline | None  # null where nothing was sent
    samples: tuple[Sample, ...]
