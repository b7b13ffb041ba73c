"""What is asked for, as frozen sections; secrets stand in the environment alone.

Each setting has one name: `endpoint.timeout_s` is a key of the file, the same key in the
`settings` that options become, and a field here.
"""

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from batchrun.errors import JobError

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
FROM_ENVIRONMENT = "env:"  # before the variable that holds a header's value
STDIN = "-"
_SECRET_LENGTH = 8  # what is shorter is a placeholder, such as EMPTY
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LOOPBACK = re.compile(r"^(localhost|127(\.\d{1,3}){3}|::1)$")


class InputJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[input]`: the prompt set."""

    path: str  # a file, a folder, a glob, or `-`
    id: str | None = None  # the column that names a row
    carry: tuple[str, ...] | None = None  # columns to carry; null: all that are not sent
    send: tuple[str, ...] = ()  # columns to send besides
    types: dict[str, str] = field(default_factory=dict)  # carried column to type
    format: str | None = None  # jsonl or parquet; null: by the file's name
    skip_bad_rows: bool = False


class EndpointJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[endpoint]`: where requests go."""

    base_url: str
    api_key_env: str = DEFAULT_KEY_ENV  # `none` for a server without keys
    mode: Literal["plain", "stream", "background"] = "plain"  # how each request is made
    headers: dict[str, str] = field(default_factory=dict)  # values may be `env:NAME`
    query: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0  # one try, from connect to the last byte
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0  # between two pieces of a body
    max_response_bytes: int = 64 * 1024 * 1024

    @property
    def is_loopback(self) -> bool:
        return _LOOPBACK.match(urlsplit(self.base_url).hostname or "") is not None


class LimitsJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: what is never exceeded."""

    concurrency: int | str = "auto"  # most requests in flight; auto: adapted
    requests_per_minute: int | None = None  # null: learnt from the server
    tokens_per_minute: int | None = None
    max_cost_usd: float | None = None
    max_failures: int | str | None = None  # rows, or a share of the last rows such as "5%"
    give_up_after_s: float = 1800.0  # how long an endpoint may be down
    hedge: bool = False  # second copies for the last slow rows

    @property
    def max_failed_share(self) -> float | None:
        """`max_failures` as a share of the last rows; null where it is a count or not set."""
        return float(self.max_failures[:-1]) / 100 if isinstance(self.max_failures, str) else None


class RetryJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[retry]`: how often and how long a row is tried."""

    max_attempts: int = 6
    max_wait_s: float = 60.0  # the longest backoff without a hint
    max_elapsed_s: float = 3600.0  # for a row, from its first send, waits at the gate left out
    on_incomplete: Literal["keep", "raise_limit"] = "keep"  # ask again with twice the limit?
    on_invalid_output: int = 0  # times to ask again where the output does not fit its schema


class OutputJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[output]`: the run directory."""

    path: str | None = None  # null: runs/NAME
    store_request: bool | None = None  # null: unless bodies average above 64 kB
    part_rows: int = 50_000
    part_bytes: int = 64 * 1024 * 1024


class PriceJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`[pricing."MODEL"]`: USD for a million tokens, all of it times `factor`."""

    input: float | None = None  # null, as `output` then is too: what the price list says
    output: float | None = None
    cached_input: float | None = None  # null: as input
    cache_write: float | None = None  # null: as input
    factor: float = 1.0


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for."""

    name: str  # the source's name without its endings; empty for `-` and globs
    input: InputJob
    endpoint: EndpointJob
    limits: LimitsJob
    retry: RetryJob
    output: OutputJob
    request: dict[str, Any] = field(default_factory=dict)  # body defaults, some of them templates
    pricing: dict[str, PriceJob] = field(default_factory=dict)  # by the model's name
    aliases: dict[str, str] = field(default_factory=dict)  # a gateway's name to the price list's


def api_key(endpoint: EndpointJob) -> str | None:
    """The key from the environment; null where none is needed. Raises `JobError` if missing."""
    if endpoint.api_key_env == "none":
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key and _needs_key(endpoint):
        raise JobError(
            f"no API key: the environment variable {endpoint.api_key_env} is not set "
            f"(for {endpoint.base_url}). Set it, name another with --api-key-env NAME, use "
            "--api-key-env none for a server without keys, or try --simulate first"
        )
    if key and not (key.isascii() and key.isprintable()):
        raise JobError(f"the key in {endpoint.api_key_env} holds characters that no header may")
    return key or None


def key_in_words(endpoint: EndpointJob) -> str:
    """Where the key comes from, and whether it is there."""
    if os.environ.get(endpoint.api_key_env, "").strip() and endpoint.api_key_env != "none":
        return f"key from ${endpoint.api_key_env}"
    if _needs_key(endpoint):
        return f"key from ${endpoint.api_key_env}, which is not set: a run needs it"
    return "without a key"


def _needs_key(endpoint: EndpointJob) -> bool:
    own = endpoint.api_key_env != DEFAULT_KEY_ENV
    return endpoint.api_key_env != "none" and (own or not endpoint.is_loopback)


def header_values(endpoint: EndpointJob) -> dict[str, str]:
    """Extra headers with `env:NAME` read from the environment. Raises `JobError` if not set."""
    values = {}
    for name, said in endpoint.headers.items():
        value, held_by = said, "its value"
        if _is_secret(said):
            variable = said.removeprefix(FROM_ENVIRONMENT)
            if variable not in os.environ:
                raise JobError(
                    f"header {name}: the environment variable {variable} is not set; set it"
                )
            value, held_by = os.environ[variable].strip(), f"the environment variable {variable}"
        if not _HEADER.fullmatch(name):
            raise JobError(f"endpoint.headers: {name!r} is no name of a header; mend it")
        if not (value.isprintable() or value.replace("\t", " ").isprintable()):
            raise JobError(f"header {name}: {held_by} holds characters that no header may")
        values[name] = value
    return values


def refuse_plain_http(endpoint: EndpointJob) -> None:
    """Raises `JobError` where a key would go through the net for all to read."""
    if endpoint.is_loopback or urlsplit(endpoint.base_url).scheme != "http":
        return
    has_key = endpoint.api_key_env != "none"
    secrets = [name for name, value in endpoint.headers.items() if _is_secret(value)]
    if has_key or secrets:
        what = f"the key in {endpoint.api_key_env}" if has_key else f"the header {secrets[0]}"
        raise JobError(
            f"{endpoint.base_url} is plain http: anybody on the way could read {what}. Use https, "
            "or --api-key-env none for a server without keys, or allow it with --insecure-http"
        )


def refuse_written_secrets(job: Job, command: str | None) -> None:
    """Raises `JobError` where a secret of the environment stands in what a run keeps on disk."""
    endpoint = job.endpoint
    headers = endpoint.headers.values()
    names = [value.removeprefix(FROM_ENVIRONMENT) for value in headers if _is_secret(value)]
    said = {**msgspec.to_builtins(job), "the command line": command}
    for variable in (endpoint.api_key_env, *names):
        secret = os.environ.get(variable, "").strip()
        if len(secret) < _SECRET_LENGTH:
            continue
        for place, text in said.items():
            if secret in str(text):
                raise JobError(
                    f"{place} holds the very value of the environment variable {variable}, which "
                    "is a secret and would be written into the run directory; take it out"
                )


def _is_secret(value: str) -> bool:
    return value.startswith(FROM_ENVIRONMENT)
