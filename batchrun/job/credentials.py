"""API keys and secret headers: from the environment or a command, never from files or options."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from batchrun.errors import JobError
from batchrun.formats.json_text import shown
from batchrun.job.sections import DEFAULT_KEY_ENV, EndpointJob, Job

FROM_ENVIRONMENT = "env:"  # before the variable that holds the value of a header, or a URL
COMMAND_S = 30.0  # that a command may take to say a key
IN_VARIABLE = (
    "Files and command lines are seen by others: put the whole URL into an environment variable, "
    "and write env:NAME in its place"
)
_SECRET_LENGTH = 8  # what is shorter is a placeholder, such as EMPTY
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}
_SECRET_NAMES = re.compile(r"(?i)(^|[-_.])(key|apikey|api_key|token|secret|password|pass|sig)$")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # the name of one
# With a digit: words of a path or a sentence may begin so too.
_SECRET_VALUE = re.compile(r"\b(sk|rk|pk|gsk|xai|hf)[-_](?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}")


class Server(NamedTuple):
    """Where requests go, with what is secret of it."""

    endpoint: EndpointJob
    key: str | None
    headers: dict[str, str]

    def __repr__(self) -> str:
        return f"Server({self.endpoint.base_url})"


def api_key(endpoint: EndpointJob) -> str | None:
    """The key, of the command or the environment; null where none is needed. Raises `JobError`."""
    if endpoint.api_key_command is not None:
        return key_of_command(endpoint.api_key_command)
    key = _variable(endpoint.api_key_env)
    if not key and _needs_key(endpoint):
        raise JobError(
            f"no API key: the environment variable {endpoint.api_key_env} is not set "
            f"(for {endpoint.base_url}). Set it, name another with --api-key-env NAME, use "
            "--api-key-env none for a server without keys, or try --simulate first"
        )
    if key and not (key.isascii() and key.isprintable()):
        raise JobError(f"the key in {endpoint.api_key_env} holds characters that no header may")
    return key or None


def key_of_command(command: str) -> str:
    """The first line of its output. Raises `JobError`, without a word of what it said."""
    what, seen = "the command in endpoint.api_key_command", "run it by hand to see why"
    try:
        ended = subprocess.run(  # noqa: S603 - the user's own command, without a shell
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"{what} printed no key within {COMMAND_S:.0f} s; {seen}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise JobError(f"{what} cannot be run ({reason}); {seen}") from None
    if ended.returncode != 0:
        how = f"exit code {ended.returncode}" if ended.returncode > 0 else "a signal ended it"
        raise JobError(f"{what} failed ({how}); {seen}")
    key = ended.stdout.partition(b"\n")[0].decode(errors="replace").strip()
    if not key:
        raise JobError(f"{what} printed nothing in its first line; {seen}")
    if not (key.isascii() and key.isprintable()):
        raise JobError(f"{what} printed a key with characters that no header may have; {seen}")
    return key


def key_in_words(endpoint: EndpointJob) -> str:
    """Where the key comes from, and whether it is there."""
    if endpoint.api_key_command is not None:
        return "key from the command in endpoint.api_key_command"
    if _variable(endpoint.api_key_env):
        return f"key from ${endpoint.api_key_env}"
    if _needs_key(endpoint):
        return f"key from ${endpoint.api_key_env}, which is not set: a run needs it"
    return "without a key"


def _variable(name: str) -> str:
    return "" if name == "none" else os.environ.get(name, "").strip()


def _needs_key(endpoint: EndpointJob) -> bool:
    own = endpoint.api_key_env != DEFAULT_KEY_ENV
    return endpoint.api_key_env != "none" and (own or not endpoint.is_loopback)


def header_values(endpoint: EndpointJob) -> dict[str, str]:
    """Extra headers with `env:NAME` read from the environment. Raises `JobError` if not set."""
    variables, values = _header_variables(endpoint), dict(endpoint.headers)
    for name, variable in variables.items():
        if variable not in os.environ:
            raise JobError(f"header {name}: the environment variable {variable} is not set; set it")
        values[name] = os.environ[variable].strip()
    for name, value in values.items():
        if not _HEADER.fullmatch(name):
            raise JobError(
                f"endpoint.headers: {shown(name)} cannot be the name of a header; fix it"
            )
        if not (value.isprintable() or value.replace("\t", " ").isprintable()):
            source = (
                f"the environment variable {variables[name]}" if name in variables else "its value"
            )
            raise JobError(f"header {name}: {source} holds characters that no header may")
    return values


def _header_variables(endpoint: EndpointJob) -> dict[str, str]:
    """The headers whose values are secret, and the variables that hold them."""
    return {
        name: value.removeprefix(FROM_ENVIRONMENT)
        for name, value in endpoint.headers.items()
        if value.startswith(FROM_ENVIRONMENT)
    }


def notify_urls(job: Job) -> dict[str, str]:
    """The URLs of `[notify]`, by what a message may call them. Raises `JobError`."""
    urls: dict[str, str] = {}
    for url in job.notify.urls:
        name = _variable_of(url)
        if name is None:
            urls[url] = url
            continue
        urls[url] = os.environ.get(name, "").strip()
        if not urls[url]:
            raise JobError(
                f"notify.urls (--notify): the environment variable {name} is not set; set it"
            )
    return urls


def refuse_no_urls(job: Job, where: str) -> None:
    """Raises `JobError` where `[notify]` holds what is no URL; it is not shown."""
    for number, url in enumerate(job.notify.urls, 1):
        name = _variable_of(url)
        if not ("://" in url if name is None else VARIABLE.fullmatch(name)):
            raise JobError(
                f"{where}: notify.urls (--notify): number {number} is not a URL (it is not shown, "
                "since it may be a secret); write a URL of apprise, such as "
                "mailto://localhost?from=me@example.com, or env:NAME for the variable that holds it"
            )


def _variable_of(text: str) -> str | None:
    """NAME of `env:NAME`; null of another text."""
    return text.removeprefix(FROM_ENVIRONMENT) if text.startswith(FROM_ENVIRONMENT) else None


def secret_variables(job: Job) -> tuple[str, ...]:
    """The environment variables that hold what is secret of the job."""
    endpoints = (job.endpoint, *(one.endpoint for one in job.variants if one.endpoint))
    variables = dict.fromkeys(
        name for one in endpoints for name in (one.api_key_env, *_header_variables(one).values())
    )
    return (*variables, *filter(None, map(_variable_of, job.notify.urls)))


def refuse_plain_http(endpoint: EndpointJob) -> None:
    """Raises `JobError` where a key would go through the net for all to read."""
    if endpoint.is_loopback or urlsplit(endpoint.base_url).scheme != "http":
        return
    secrets = [f"the header {name}" for name in _header_variables(endpoint)]
    if endpoint.api_key_command is not None:
        secrets.insert(0, "the key of endpoint.api_key_command")
    elif endpoint.api_key_env != "none":
        secrets.insert(0, f"the key in {endpoint.api_key_env}")
    if secrets:
        raise JobError(
            f"{endpoint.base_url} is plain http: anybody on the way could read {secrets[0]}. Use "
            "https, or --api-key-env none for a server without keys, or allow it with "
            "--insecure-http"
        )


def refuse_written_secrets(job: Job, command: str | None, key: str | None = None) -> None:
    """Raises `JobError` where the value of a secret variable would be written to disk by a run.

    `key`: one that a command said, which is a secret too.
    """
    written = {**msgspec.to_builtins(job), "the command line": command}
    variables = secret_variables(job)
    secrets = [(f"the environment variable {name}", os.environ.get(name, "")) for name in variables]
    if key is not None:
        secrets.append(("the key that endpoint.api_key_command says", key))
    for source, value in secrets:
        secret = value.strip()
        for section, text in written.items():
            if len(secret) >= _SECRET_LENGTH and secret in str(text):
                raise JobError(
                    f"{section} holds the value of {source}, which "
                    "is a secret and would be written into the run directory; take it out"
                )


def refuse_keys(tree: dict[str, Any], where: str) -> None:
    """Raises `JobError` where a setting looks like a key; it names the setting, not the value."""
    for path, value in _strings(tree):
        *tables, last = path
        is_named = last.lower() in _SECRET_HEADERS or _SECRET_NAMES.search(last) is not None
        tables = tables[1:] if path[0] == "variants" else tables  # each may have an endpoint
        in_headers = tables == ["endpoint", "headers"] and not value.startswith(FROM_ENVIRONMENT)
        in_endpoint = tables in (["endpoint"], ["endpoint", "query"]) and last != "api_key_env"
        is_path = path[0] in ("input", "output") and last == "path"
        # A path may hold anything, but no file is called like a key and nothing more.
        find = _SECRET_VALUE.fullmatch if is_path else _SECRET_VALUE.search
        if path[0] == "notify" and (find(value) is not None or _is_url_with_secret(value)):
            raise JobError(f"{where}: {'.'.join(path)} holds a secret. {IN_VARIABLE}")
        if (is_named and (in_headers or in_endpoint)) or find(value) is not None:
            raise JobError(
                f"{where}: {'.'.join(path)} holds what looks like a key. Files and command lines "
                "are seen by others, so keys come from the environment only: name the variable in "
                'endpoint.api_key_env, or write a header as "env:NAME"'
            )


def _is_url_with_secret(text: str) -> bool:
    """Whether anybody can see a secret in it: a password, or a value with the name of one."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    # apprise has marks before the names of headers and of fields.
    names = [name.strip(" +-:").lower() for name, _ in parse_qsl(parts.query)]
    is_secret = any(name in _SECRET_HEADERS or _SECRET_NAMES.search(name) for name in names)
    return is_secret or bool(parts.password)


def _strings(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner, path)
