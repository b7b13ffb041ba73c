"""What a run is estimated at: nouns, frozen. Tokens without a unit of time are for all rows."""

from msgspec import Struct

from batchrun.records import Estimated


class InputTokens(Struct, frozen=True):
    """The input of the rows that go to one model, as it will be billed."""

    model: str | None  # null: rows name none
    rows: int
    counted_in: str  # the vocabulary of its texts, or `bytes/4`
    factor: float  # what the count of the texts was multiplied by
    text_tokens: int  # of the texts alone, before the factor
    min: int  # of a row, and below
    median: int
    p95: int
    max: int
    total: int


class Answers(Struct, frozen=True):
    """What it comes to if answers are so long."""

    model: str | None  # null: each row's own
    name: str  # the assumption, in words
    each_tokens: float | None  # assumed for an answer; null: the row's `max_output_tokens`
    output_tokens: int
    usd: dict[str, float | None]  # by tier; null: no price is known
    least_s: float | None  # at the limits given; null: none is


class Range(Struct, frozen=True):
    """A figure for all rows: what is known, and an interval for the rest."""

    so_far: float
    total: float
    low: float
    high: float


class PilotResult(Struct, frozen=True):
    """What rows picked by chance say of all."""

    rows: int  # picked
    ok: int
    used: int  # of them, those whose tokens are known
    share: float  # of how many such intervals hold the true figure
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None  # null where a price is missing
    latency_s: float | None  # mean of the tries that counted


class Estimate(Struct, frozen=True):
    """What a run would cost, or what is left of it."""

    run: str
    simulated: bool
    rows: int  # of the source
    settled: int
    spent_usd: float | None  # on settled rows; null where nothing is known
    to_send: int
    bad_rows: int
    inputs: tuple[InputTokens, ...]  # by model
    answers: tuple[Answers, ...]
    pilot: PilotResult | None = None
    estimated: Estimated | None = None  # what `report` will say of it
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # the plan's, and of the cap
