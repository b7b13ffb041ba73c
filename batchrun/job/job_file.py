"""A job read and checked: from a TOML file, from options, or from both.

What is wrong is named by its key, and a secret is refused in either.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job.credentials import refuse_keys
from batchrun.job.price_sections import read_prices
from batchrun.job.sections import STDIN, Job
from batchrun.job.tables import check_tables, read_section, read_toml

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_TABLES = tuple(name for name in Job.__struct_fields__ if name != "name")
_ENDINGS = (".jsonl", ".ndjson", ".parquet", ".toml", ".gz", ".zst")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load_job(source: str | Path, settings: Mapping[str, Any] | None = None) -> Job:
    """The job for a prompt set or a job file, `settings` (dotted key to value) winning over it.

    Raises `JobError`.
    """
    source, settings = str(source), settings or {}
    where = "the options"
    tree: dict[str, Any] = {"input": {"path": source}}
    if source.endswith(".toml"):
        where, tree = source, _read_job_file(Path(source))
        if "path" not in tree["input"] and "input.path" not in settings:
            raise JobError(
                f"{source}: [input] has no path; add path = 'FILE' (relative to the file)"
            )
    for key, value in settings.items():
        _put(tree, key, value)
    refuse_keys(tree, "the options")
    check_tables(tree, _TABLES, where)
    url = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    tree["endpoint"] = {"base_url": url, **tree.get("endpoint", {})}
    prices = read_prices(tree, where)
    tree |= {"name": _name_of(source), "pricing": prices.pricing, "aliases": prices.aliases}
    job = read_section(tree, Job, where)
    for word in ("stream", "background"):
        if word in job.request:
            raise JobError(f"{where}: request.{word} is set by batchrun itself; take it out")
    if not _VARIABLE.fullmatch(job.endpoint.api_key_env):
        raise JobError(
            f"{where}: endpoint.api_key_env is no name of an environment variable (what it holds "
            "is not shown, since it may be a key); put the key into a variable and name that"
        )
    return replace(job, endpoint=replace(job.endpoint, base_url=_base_url(job.endpoint.base_url)))


def _read_job_file(path: Path) -> dict[str, Any]:
    """The tables of a job file, with paths as seen from here."""
    tree = read_toml(path)
    refuse_keys(tree, str(path))
    check_tables(tree, _TABLES, str(path))
    for section in ("input", "output"):
        value = tree.setdefault(section, {}).get("path")
        if isinstance(value, str) and value != STDIN:
            tree[section]["path"] = str(path.parent / value)
    return tree


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *tables, last = dotted.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            inner = tree[table] = {}
        tree = inner
    tree[last] = value


def _name_of(source: str) -> str:
    if source == STDIN or any(letter in source for letter in "*?["):
        return ""
    name = Path(source).resolve().name
    while name.lower().endswith(_ENDINGS) and Path(name).stem:
        name = Path(name).stem
    return name


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
