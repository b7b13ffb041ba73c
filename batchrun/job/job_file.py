"""A job read and checked: from a TOML file, from options, or from both.

Whatever is wrong is told by the key's name, and a secret is refused wherever it stands.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.nearest import nearest
from batchrun.job.price_sections import SECTIONS as PRICE_SECTIONS
from batchrun.job.price_sections import (
    check_given,
    read_toml,
    readable,
    refuse_unknown_prices,
)
from batchrun.job.sections import (
    FROM_ENVIRONMENT,
    STDIN,
    EndpointJob,
    InputJob,
    Job,
    LimitsJob,
    OutputJob,
    RetryJob,
)

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_ENDINGS = (".jsonl", ".ndjson", ".parquet", ".toml", ".gz", ".zst")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}
_SECRET_NAMES = re.compile(r"(?i)(^|[-_.])(key|apikey|api_key|token|secret|password|sig)$")
# With a digit: words of a path or a sentence may begin so too.
_SECRET_VALUE = re.compile(r"\b(sk|rk|pk|gsk|xai|hf)[-_](?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHARE = re.compile(r"(100|[0-9]{1,2}(\.[0-9]+)?)%")
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
    given: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        _put(tree, key, value)
        _put(given, key, value)
    _refuse_secrets(given, "the options")
    endpoint = tree.setdefault("endpoint", {})
    endpoint.setdefault("base_url", os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    _refuse_unknown_keys(tree, where)
    tree["name"] = _name_of(text)
    for section in _SECTIONS:
        tree.setdefault(section, {})
    try:
        job = msgspec.convert(tree, Job)
    except msgspec.ValidationError as error:
        raise JobError(f"{where}: {readable(str(error))}") from error
    return _checked(job, where)


def _read_toml(path: Path) -> dict[str, Any]:
    tree = read_toml(path, "job file")
    for section in (*_SECTIONS, "request", *PRICE_SECTIONS):
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
        in_headers = tables == ["endpoint", "headers"] and not value.startswith(FROM_ENVIRONMENT)
        in_endpoint = tables in (["endpoint"], ["endpoint", "query"]) and last != "api_key_env"
        is_path = path[0] in ("input", "output") and last == "path"
        # A path may hold anything, but no file is called like a key and nothing more.
        find = _SECRET_VALUE.fullmatch if is_path else _SECRET_VALUE.search
        like_a_key = find(value) is not None
        if (named and (in_headers or in_endpoint)) or like_a_key:
            raise JobError(
                f"{where}: {dotted} holds what looks like a key. Files and command lines are seen "
                "by others, so keys come from the environment only: name the variable in "
                'endpoint.api_key_env, or write a header as "env:NAME"'
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
    known = (*_SECTIONS, "request", *PRICE_SECTIONS)
    for section, table in tree.items():
        if section not in known:
            raise JobError(f"{where}: unknown section [{section}]; {nearest(section, known)}")
        if section not in _SECTIONS or not isinstance(table, dict):
            continue
        names = _SECTIONS[section].__struct_fields__
        for key in table:
            if key not in names:
                raise JobError(f"{where}: unknown key {section}.{key}; {nearest(key, names)}")
    refuse_unknown_prices(tree, where)


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
        "limits.concurrency": (_or_least(job.limits.concurrency, 1), 1),
        "limits.requests_per_minute": (_or_least(job.limits.requests_per_minute, 1), 1),
        "limits.tokens_per_minute": (_or_least(job.limits.tokens_per_minute, 1), 1),
        "limits.max_cost_usd": (_or_least(job.limits.max_cost_usd, 0), 0),
        "limits.max_failures": (_or_least(job.limits.max_failures, 1), 1),
        "limits.give_up_after_s": (job.limits.give_up_after_s, 0),
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
    if isinstance(job.limits.concurrency, str) and job.limits.concurrency != "auto":
        raise JobError(
            f"{where}: limits.concurrency is {job.limits.concurrency!r}; it is a number from 1, or "
            "'auto'"
        )
    share = job.limits.max_failures
    if isinstance(share, str) and not _SHARE.fullmatch(share):
        raise JobError(
            f"{where}: limits.max_failures is {share!r}; it is a count of rows such as 100, or a "
            "share of the last rows such as '5%'"
        )
    check_given(job.pricing, job.aliases, where)
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


def _or_least(value: float | str | None, least: float) -> float:
    """A number to be checked; what is not set, or no number, passes."""
    return least if value is None or isinstance(value, str) else value


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
