"""What is asked for, as frozen sections with the type, default and bounds of each setting.

Each setting has one name: `endpoint.timeout_s` is a key of the file, the same key in the
`settings` that options become, and a field here.
"""

import re
import sys
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from batchrun.errors import ErrorKind
from batchrun.formats.printable import nearest
from batchrun.job.expansion import Expansion
from batchrun.job.scorer_sections import ScorerJob
from batchrun.job.stop_time import stop_time

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
STDIN = "-"
_LOOPBACK = re.compile(r"^(localhost|127(\.\d{1,3}){3}|::1)$")

# What an answer can say of itself. The other kinds are what batchrun sees.
TOLD_KINDS = (
    ErrorKind.QUOTA,
    ErrorKind.UNAUTHORIZED,
    ErrorKind.FORBIDDEN,
    ErrorKind.NOT_FOUND,
    ErrorKind.FIREWALL,
    ErrorKind.RATE_LIMIT,
    ErrorKind.OVER_LIMIT,
    ErrorKind.BUSY,
    ErrorKind.OVERLOADED,
    ErrorKind.SERVER_ERROR,
    ErrorKind.GATEWAY_TIMEOUT,
    ErrorKind.UNREADABLE,
    ErrorKind.TOO_LONG,
    ErrorKind.CONTENT_POLICY,
    ErrorKind.BAD_REQUEST,
)

Count = Annotated[int, Meta(ge=1)]
Samples = Annotated[int, Meta(ge=1, le=10_000, description="a number from 1 to 10,000")]
Seconds = Annotated[float, Meta(ge=0)]
Timeout = Annotated[float, Meta(ge=0.001)]  # seconds
Dollars = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Cpus = Annotated[float, Meta(ge=0, le=10_000, description="a number of cores from 0 to 10,000")]
Silence = Annotated[float, Meta(ge=1, le=3600, description="seconds from 1 to 3,600")]
_SHARE = r"^(100|[0-9]{1,2}(\.[0-9]+)?)%$"
Share = Annotated[str, Meta(pattern=_SHARE, description="a share of the last rows such as '5%'")]
# Of all rows that a command completes.
ShareOfAll = Annotated[str, Meta(pattern=_SHARE, description="a share of the rows such as '1%'")]


class InputJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[input]`: the prompt set."""

    path: str  # a file, a folder, a glob, one of these in a store or on the Hub, or `-`
    id: str | None = None  # the column that names a row
    carry: tuple[str, ...] | None = None  # columns to carry; null: all that are not sent
    send: tuple[str, ...] = ()  # columns to send besides
    types: dict[str, str] = field(default_factory=dict)  # carried column to type
    format: Literal["jsonl", "parquet"] | None = None  # null: by the file's name
    skip_bad_rows: bool = False
    where: str | None = None  # a DuckDB expression: only rows for which it holds
    append: bool = False  # it holds further rows only: complete rows that it lacks stay


class EndpointJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[endpoint]`: where requests go."""

    base_url: str
    api_key_env: str = DEFAULT_KEY_ENV  # `none` for a server without keys
    api_key_command: str | None = None  # says the key instead, in the first line of its output
    api_key_ttl_s: Timeout | None = None  # after that the command is asked again; null: never
    mode: Literal["plain", "stream", "background"] = "plain"  # how each request is made
    headers: dict[str, str] = field(default_factory=dict)  # values may be `env:NAME`
    query: dict[str, str] = field(default_factory=dict)
    timeout_s: Timeout = 600.0  # one attempt, from connect to the last byte
    connect_timeout_s: Timeout = 10.0
    idle_timeout_s: Timeout = 120.0  # longest silence once a body, in a stream text, has begun
    max_response_bytes: Count = 64 * 1024 * 1024

    @property
    def is_loopback(self) -> bool:
        return _LOOPBACK.match(urlsplit(self.base_url).hostname or "") is not None


class LimitsJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: what is never exceeded."""

    concurrency: Count | Literal["auto"] = "auto"  # most requests in flight; auto: adapted
    requests_per_minute: Count | None = None  # null: as the server advertises, or inferred
    tokens_per_minute: Count | None = None
    max_cost_usd: Dollars | None = None  # of the run directory, over all commands
    max_cost_per_command_usd: Dollars | None = None
    max_failures: Count | Share | None = None  # failed rows
    tolerate: Annotated[int, Meta(ge=0)] | ShareOfAll | None = None  # rows that are not ok
    stop_at: str | None = None  # when nothing more is sent: see `stop_time`
    give_up_after_s: Seconds | None = None  # how long an endpoint may be down; null: see below
    hedge: bool = False  # second copies for the last slow rows

    @property
    def outage_s(self) -> float:
        """How long an endpoint that has answered may be down."""
        return 1800.0 if self.give_up_after_s is None else self.give_up_after_s

    @property
    def unanswered_s(self) -> float:
        """How long one that has not: a wrong URL is told sooner."""
        return 60.0 if self.give_up_after_s is None else self.give_up_after_s

    @property
    def max_failed_share(self) -> float | None:
        """`max_failures` as a share of the last rows; null where it is a count or not set."""
        return float(self.max_failures[:-1]) / 100 if isinstance(self.max_failures, str) else None

    def tolerates(self, not_ok: int, rows: int) -> bool:
        """Whether so many rows may be not ok of those that a command completed."""
        most = 0 if self.tolerate is None else self.tolerate
        if isinstance(most, str):
            return not_ok * 100 <= float(most[:-1]) * rows
        return not_ok <= most

    def __post_init__(self) -> None:
        if self.stop_at is not None:
            stop_time(self.stop_at, datetime.now())  # noqa: DTZ005 - local, as the user means it


class RetryJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[retry]`: how often and how long a row is attempted."""

    max_attempts: Count = 6
    max_wait_s: Seconds = 60.0  # the longest backoff without a hint
    max_elapsed_s: Seconds = 3600.0  # for a row, from its first send, waits at the gate left out
    on_incomplete: Literal["keep", "raise_limit"] = "keep"  # ask again with twice the limit?
    on_invalid_output: Annotated[int, Meta(ge=0)] = 0  # times to ask again for output that fits
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)  # kind to parts of messages

    def __post_init__(self) -> None:
        for kind, parts in self.words.items():
            if kind not in TOLD_KINDS:
                raise ValueError(
                    f"words.{kind} is not a kind of error; {nearest(kind, TOLD_KINDS)}"
                )
            if not all(part.strip() for part in parts):
                raise ValueError(f"words.{kind} has an empty text, which every message contains")


class OutputJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[output]`: the run directory."""

    path: str | None = None  # a folder, or its URL in a store; null: runs/NAME
    store_request: bool | None = None  # null: unless bodies average above 64 kB
    part_rows: Count = 50_000
    part_bytes: Count = 64 * 1024 * 1024
    part_seconds: Annotated[float, Meta(ge=1)] | None = None  # null: 300 in a store, else none


class ClusterJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[cluster]`: the processes and machines of a run."""

    executor: Literal["local", "ray"] = "local"
    workers: Count | None = None  # processes, with `ray`
    address: str | None = None  # of a Ray cluster, auto, or local; null: $RAY_ADDRESS, or auto
    cpus_per_worker: Cpus = 1.0
    silence_s: Silence = 30.0  # after so much of it workers and driver give each other up
    per_node_endpoint: bool = False  # each machine has its own server at a loopback address
    scratch: str | None = None  # a local folder; null: in that of the state of programs

    def __post_init__(self) -> None:
        if self.cpus_per_worker > 1 and not self.cpus_per_worker.is_integer():
            raise ValueError("cpus_per_worker is a whole number, or a share below 1")


class NotifyJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[notify]`: who is told how a run is doing."""

    urls: tuple[str, ...] = ()  # as apprise has them, or `env:NAME`


class ExpandJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[expand]`: how many requests a row becomes."""

    samples: Samples = 1  # for each row and variant
    vary: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # dotted request key to values


class VariantJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[variants]]`, or one of those that `vary` makes: what of each request is another."""

    name: str
    drop: tuple[str, ...] = ()  # dotted fields of the body that are taken out first
    request: dict[str, Any] = field(default_factory=dict)  # over the row's, objects merged
    endpoint: EndpointJob | None = None  # null: that of the job


class PriceJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[pricing."MODEL"]`: USD for a million tokens, all of it times `factor`."""

    input: Rate | None = None  # null, as `output` then is too: what the price list says
    output: Rate | None = None
    cached_input: Rate | None = None  # null: as input
    cache_write: Rate | None = None  # null: as input
    web_search: Rate | None = None  # USD for a thousand; null: what the price list says
    file_search: Rate | None = None
    batch_factor: Rate | None = None  # of the tokens of a batch; null: the list's, or 0.5
    factor: Rate = 1.0

    def __post_init__(self) -> None:
        how = "give both, in USD for a million"
        if (self.input is None) != (self.output is None):
            given, missing = ("output", "input") if self.input is None else ("input", "output")
            raise ValueError(f"has {given} but no {missing}; {how}")
        if self.input is None and (self.cached_input, self.cache_write) != (None, None):
            raise ValueError(f"has neither input nor output; {how}")


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for."""

    name: str  # the source's name without its endings; empty for `-` and globs
    input: InputJob
    endpoint: EndpointJob
    limits: LimitsJob = LimitsJob()
    retry: RetryJob = RetryJob()
    output: OutputJob = OutputJob()
    cluster: ClusterJob = ClusterJob()
    notify: NotifyJob = NotifyJob()
    request: dict[str, Any] = field(default_factory=dict)  # body defaults, some of them templates
    expand: ExpandJob = ExpandJob()
    variants: tuple[VariantJob, ...] = ()  # also those that `expand.vary` makes
    pricing: dict[str, PriceJob] = field(default_factory=dict)  # by the model's name
    aliases: dict[str, str] = field(default_factory=dict)  # a gateway's name to the price list's
    scorers: tuple[ScorerJob, ...] = ()
    file: str | None = None  # the job file, in full

    @property
    def expansion(self) -> Expansion:
        """The requests that each row becomes."""
        names = tuple(variant.name for variant in self.variants)
        return Expansion(self.expand.samples, names or (None,))

    def endpoint_of(self, variant: str | None) -> EndpointJob:
        """Where requests of a variant go."""
        own = next((one.endpoint for one in self.variants if one.name == variant), None)
        return own or self.endpoint
