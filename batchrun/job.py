"""A job read and checked, as frozen sections: from a TOML file, from options, or from both.

Each setting has one name: `endpoint.timeout_s` is a key of the file, the same key in the
`settings` that options become, and a field here. A secret has no place in any of them.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from batchrun.errors import JobError

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
STDIN = "-"
_ENDINGS = (".jsonl", ".ndjson", ".parquet", ".toml", ".gz", ".zst")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}
_SECRET_NAMES = re.compile(r"(?i)(^|[-_.])(key|apikey|api_key|token|secret|password|sig)$")
_SECRET_VALUE = re.compile(r"\b(sk|rk|pk|gsk|xai|hf)[-_][A-Za-z0-9_-]{16,}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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

    concurrency: int = 64  # requests in flight


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


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for."""

    name: str  # the source's name without its endings; empty for `-` and globs
    input: InputJob
    endpoint: EndpointJob
    limits: LimitsJob
    retry: RetryJob
    output: OutputJob
    request: dict[str, Any] = field(default_factory=dict)  # body defaults, some of them templates


_SECTIONS: dict[str, type[Struct]] = {
    "input": InputJob,
    "endpoint": EndpointJob,
    "limits": LimitsJob,
    "retry": RetryJob,
    "output": OutputJob,
}


def load_job(source: str | Path, settings: Mapping[str, Any] | None = None) -> Job:
    """The job for a prompt set or a job file, `settings` (dotted key to value) winning over it.

    Raises `JobError`.
    """
    text = str(source)
    where = "the options"
    tree: dict[str, Any] = {}
    if text.endswith(".toml"):
        where = text
        tree = _read_toml(Path(text))
        _refuse_secrets(tree, text)
        _refuse_unknown_keys(tree, text)
        if "path" not in tree.get("input", {}) and "input.path" not in (settings or {}):
            raise JobError(f"{text}: [input] has no path; add path = 'FILE' (relative to the file)")
    else:
        tree["input"] = {"path": text}
    for key, value in (settings or {}).items():
        _put(tree, key, value)
    endpoint = tree.setdefault("endpoint", {})
    endpoint.setdefault("base_url", os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    _refuse_unknown_keys(tree, where)
    tree["name"] = _name_of(text)
    for section in _SECTIONS:
        tree.setdefault(section, {})
    try:
        job = msgspec.convert(tree, Job)
    except msgspec.ValidationError as error:
        raise JobError(f"{where}: {_readable(str(error))}") from error
    return _checked(job, where)


def api_key(endpoint: EndpointJob) -> str | None:
    """The key from the environment; null where none is needed. Raises `JobError` if missing."""
    if endpoint.api_key_env == "none":
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    is_needed = not endpoint.is_loopback or endpoint.api_key_env != DEFAULT_KEY_ENV
    if not key and is_needed:
        raise JobError(
            f"no API key: the environment variable {endpoint.api_key_env} is not set "
            f"(for {endpoint.base_url}). Set it, name another with --api-key-env NAME, use "
            "--api-key-env none for a server without keys, or try --simulate first"
        )
    if key and not (key.isascii() and key.isprintable()):
        raise JobError(f"the key in {endpoint.api_key_env} holds characters that no header may")
    return key or None


def header_values(endpoint: EndpointJob) -> dict[str, str]:
    """Extra headers with `env:NAME` read from the environment. Raises `JobError` if not set."""
    values = {}
    for name, value in endpoint.headers.items():
        if value.startswith("env:"):
            variable = value.removeprefix("env:")
            if variable not in os.environ:
                raise JobError(
                    f"header {name}: the environment variable {variable} is not set; set it"
                )
            values[name] = os.environ[variable]
        else:
            values[name] = value
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file; check the path") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error
    for section in (*_SECTIONS, "request"):
        if section in tree and not isinstance(tree[section], dict):
            raise JobError(f"{path}: {section} must be a table: write [{section}]")
    base = path.parent
    for section in ("input", "output"):
        value = tree.get(section, {}).get("path")
        if isinstance(value, str) and value != STDIN:
            tree[section]["path"] = str(base / value)
    return tree


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *tables, last = dotted.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            inner = tree[table] = {}
        tree = inner
    tree[last] = value


def _refuse_secrets(tree: dict[str, Any], where: str) -> None:
    """Messages name the key, never its value."""
    for path, value in _strings(tree):
        *tables, last = path
        dotted = ".".join(path)
        named = last.lower() in _SECRET_HEADERS or _SECRET_NAMES.search(last) is not None
        in_headers = tables == ["endpoint", "headers"] and not value.startswith("env:")
        in_endpoint = tables in (["endpoint"], ["endpoint", "query"]) and last != "api_key_env"
        if (named and (in_headers or in_endpoint)) or _SECRET_VALUE.search(value):
            raise JobError(
                f"{where}: {dotted} holds what looks like a key. Files are shared, so "
                "keys come from the environment only: name the variable in endpoint.api_key_env, "
                'or write a header as "env:NAME"'
            )


def _strings(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], str]]:
    if isinstance(value, str):
        yield list(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, path)


def _refuse_unknown_keys(tree: dict[str, Any], where: str) -> None:
    known = (*_SECTIONS, "request")
    for section, table in tree.items():
        if section not in known:
            raise JobError(f"{where}: unknown section [{section}]{_nearest(section, known)}")
        if section == "request" or not isinstance(table, dict):
            continue
        names = _SECTIONS[section].__struct_fields__
        for key in table:
            if key not in names:
                raise JobError(f"{where}: unknown key {section}.{key}{_nearest(key, names)}")


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _readable(message: str) -> str:
    """The message with the key first."""
    text, _, path = message.partition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if path else text


def _name_of(source: str) -> str:
    if source == STDIN or any(letter in source for letter in "*?["):
        return ""
    name = Path(source).resolve().name
    while name.lower().endswith(_ENDINGS) and Path(name).stem:
        name = Path(name).stem
    return name


def _checked(job: Job, where: str) -> Job:
    least: dict[str, tuple[float, float]] = {
        "endpoint.timeout_s": (job.endpoint.timeout_s, 0.001),
        "endpoint.connect_timeout_s": (job.endpoint.connect_timeout_s, 0.001),
        "endpoint.idle_timeout_s": (job.endpoint.idle_timeout_s, 0.001),
        "endpoint.max_response_bytes": (job.endpoint.max_response_bytes, 1),
        "limits.concurrency": (job.limits.concurrency, 1),
        "retry.max_attempts": (job.retry.max_attempts, 1),
        "retry.on_invalid_output": (job.retry.on_invalid_output, 0),
        "retry.max_wait_s": (job.retry.max_wait_s, 0),
        "retry.max_elapsed_s": (job.retry.max_elapsed_s, 0),
        "output.part_rows": (job.output.part_rows, 1),
        "output.part_bytes": (job.output.part_bytes, 1),
    }
    for key, (value, smallest) in least.items():
        if not value >= smallest:  # also NaN
            raise JobError(f"{where}: {key} is {value}; it must be at least {smallest}")
    if job.input.format not in (None, "jsonl", "parquet"):
        raise JobError(f"{where}: input.format is {job.input.format!r}; it is jsonl or parquet")
    if not _VARIABLE.fullmatch(job.endpoint.api_key_env):
        raise JobError(
            f"{where}: endpoint.api_key_env is no name of an environment variable (what it holds "
            "is not shown, since it may be a key); put the key into a variable and name that"
        )
    for word in ("stream", "background"):
        if word in job.request:
            raise JobError(f"{where}: request.{word} is set by batchrun itself; take it out")
    url = _base_url(job.endpoint.base_url)
    endpoint = msgspec.structs.replace(job.endpoint, base_url=url)
    return msgspec.structs.replace(job, endpoint=endpoint)


def _base_url(text: str) -> str:
    """The URL without `/responses` and slashes at its end. Raises `JobError`."""
    url = text.strip().rstrip("/").removesuffix("/responses").rstrip("/")
    how = "give the base URL, such as https://api.openai.com/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise JobError(f"the base URL is no URL; {how}") from None
    if "@" in parts.netloc:
        raise JobError(f"the base URL holds a user name or password; take it out, {how}")
    if parts.query or parts.fragment:
        raise JobError(f"the base URL has a query or fragment; put it in [endpoint.query], {how}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise JobError(f"the base URL {text!r} is no http or https URL; {how}")
    if any(letter.isspace() for letter in url):
        raise JobError(f"the base URL {text!r} holds white space; {how}")
    return url
