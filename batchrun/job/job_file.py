"""A job read and checked: from a TOML file, from options, or from both.

What is wrong is named by its key, with its value and what it must be; secrets are refused. The
user's own prices are `[pricing]` and `[aliases]` of `~/.config/batchrun/prices.toml`
(`XDG_CONFIG_HOME` is honoured); for a name that a job mentions, the job wins.
"""

import math
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, time
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.json_text import as_utf8, shown
from batchrun.formats.printable import nearest
from batchrun.job.credentials import VARIABLE, refuse_keys, refuse_no_urls
from batchrun.job.expansion import varied
from batchrun.job.scorer_sections import KINDS, JsonJob, PythonJob, ScorerJob
from batchrun.job.sections import (
    DEFAULT_KEY_ENV,
    STDIN,
    ClusterJob,
    EndpointJob,
    Job,
    PriceJob,
    VariantJob,
)
from batchrun.remote.urls import is_remote, is_store, name_of

DEFAULT_BASE_URL = "https://api.openai.com/v1"
# For a run in a store: its claim may have been renewed 10 s before the driver died, and then counts
# for another 50 s. Until then its workers must have begun their last rows.
LONGEST_SILENCE_S = 45.0
_PRICE_TABLES = ("pricing", "aliases")
_TABLES = tuple(name for name in Job.__struct_fields__ if name not in ("name", "file"))
_ENDINGS = (
    *(".jsonl", ".ndjson", ".json", ".parquet", ".toml"),
    *(".gz", ".zst", ".bz2", ".xz"),
)
_VARIANT = re.compile(r"[A-Za-z0-9._:/@+-]{1,64}")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)")
_MISSING = re.compile(r"Object missing required field `([^`]*)")
Section = TypeVar("Section", bound=Struct)
Pricing = Mapping[str, PriceJob]  # by the model's name
Aliases = Mapping[str, str]  # a gateway's name to the price list's


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
        if key in ("input.types", "expand.vary"):  # those of the file stay
            value = {**_table(tree, *key.split(".")), **value}  # noqa: PLW2901
        _put(tree, key, value)
    refuse_keys(tree, "the options")
    _check_tables(tree, _TABLES, where)
    url = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    tree["endpoint"] = {"base_url": url, **tree.get("endpoint", {})}
    pricing, aliases = _read_prices(tree, where)
    tree |= {"name": _name_of(source), "pricing": pricing, "aliases": aliases}
    scorers = read_scorers(tree.pop("scorers", []), where, Path(source).parent)
    job = _read_section({**tree, "variants": []}, Job, where)
    if source.endswith(".toml"):
        job = replace(job, scorers=scorers, file=as_utf8(str(Path(source).resolve())))
    _refuse_own_fields(job.request, where)
    refuse_no_urls(job, where)
    job = replace(job, endpoint=_checked(job.endpoint, where))
    _check_cluster(job, where, is_chosen="cluster.executor" in settings)
    for key in (key for key in job.expand.vary if f"request.{key}" in settings):
        raise JobError(
            f"{where}: request.{key} is given one value, and expand.vary (--vary) several; take "
            "one out, or run some variants alone with --variant NAME"
        )
    return replace(job, variants=_read_variants(tree.get("variants", []), job, where))


def _read_variants(tables: Any, job: Job, where: str) -> tuple[VariantJob, ...]:
    """`[[variants]]`, or what `expand.vary` makes, checked. Raises `JobError`."""
    vary = job.expand.vary
    if tables and vary:
        raise JobError(
            f"{where}: [[variants]] and expand.vary (--vary, several --model) both say what "
            "differs; take one out"
        )
    for key, values in vary.items():
        if not values or not all(key.split(".")):
            raise JobError(
                f"{where}: expand.vary.{key}: give a request key and at least one value, such as "
                '"reasoning.effort" = ["low", "high"]'
            )
    if vary:
        tables = varied(vary)
    variants: list[VariantJob] = []
    for number, table in enumerate(_tables_of("variants", tables, where), 1):
        name = table.get("name")
        what = f"{where}: [[variants]] {number}"
        if not isinstance(name, str) or not _VARIANT.fullmatch(name):
            how = "give each variant a name in [[variants]]" if vary else "give it a name"
            raise JobError(
                f"{what}: name is {shown(name)}; {how} of 1 to 64 of A-Z a-z 0-9 . _ : / @ + -"
            )
        if name in [one.name for one in variants]:
            raise JobError(
                f"{what}: there is another variant {shown(name)}; each has a name of its own"
            )
        if "endpoint" in table:
            table = {**table, "endpoint": _own_endpoint(table["endpoint"], job, what)}  # noqa: PLW2901
        one = _read_section(table, VariantJob, f"{what} ({name})")
        _refuse_own_fields(one.request, f"{what} ({name})")
        variants.append(one)
    having = [one.name for one in variants if "input" in one.request]
    if having and "input" not in job.request and len(having) < len(variants):
        missing = next(one.name for one in variants if one.name not in having)
        raise JobError(
            f"{where}: variant {having[0]} has a template for request.input, and {missing} has "
            "none; write it into [request], or into each variant"
        )
    return tuple(variants)


def _check_cluster(job: Job, where: str, *, is_chosen: bool) -> None:
    """Raises `JobError` where a setting would do nothing or harm, or lacks another.

    `is_chosen`: whether the command says which executor, so that settings of the other may stand.
    """
    cluster, path = job.cluster, job.output.path
    if path is not None and is_store(path):
        refuse_silence(cluster, path, where)
    if cluster.executor == "ray" and cluster.workers is None:
        raise JobError(
            f"{where}: cluster.executor (--executor) is ray, and nothing says how many workers; "
            "give cluster.workers, such as --workers 4"
        )
    if cluster.executor == "local" and cluster.workers is not None and not is_chosen:
        raise JobError(
            f"{where}: cluster.workers (--workers) is for cluster.executor ray, and it is local; "
            "add --executor ray"
        )


def refuse_silence(cluster: ClusterJob, url: str, where: str) -> None:
    """Raises `JobError` where workers of the run at this URL would outlive its claim."""
    if cluster.executor == "ray" and cluster.silence_s > LONGEST_SILENCE_S:
        raise JobError(
            f"{where}: cluster.silence_s is {cluster.silence_s:g}, and the run is in a store "
            f"({url}): if the driver dies, its workers would still send rows when a command on "
            "another machine may already take the run over, so both would pay for them; set "
            f"silence_s in [cluster] to {LONGEST_SILENCE_S:g} or less"
        )


def _own_endpoint(table: Any, job: Job, where: str) -> EndpointJob:
    """A variant's endpoint: the job's, but for what is given. Raises `JobError`.

    Where it has a URL of its own, nothing that may be secret goes along: keys, headers, query.
    """
    if not isinstance(table, dict):
        raise JobError(f"{where}: endpoint must be a table: write endpoint = {{ base_url = … }}")
    inherited: dict[str, Any] = msgspec.structs.asdict(job.endpoint)
    if "base_url" in table:
        for name in ("api_key_env", "api_key_command", "api_key_ttl_s", "headers", "query"):
            del inherited[name]
    elif "api_key_env" in table or "api_key_command" in table:
        for name in ("api_key_env", "api_key_command", "api_key_ttl_s"):
            del inherited[name]
    endpoint = _checked(_read_section({**inherited, **table}, EndpointJob, where), where)
    says_key = {"api_key_env", "api_key_command", "headers"} & table.keys()
    if "base_url" in table and not says_key and not endpoint.is_loopback:
        raise JobError(
            f"{where}: endpoint has a base_url and no key; write api_key_env = "
            f'"{DEFAULT_KEY_ENV}" or another name, or api_key_env = "none"'
        )
    return endpoint


def _refuse_own_fields(request: Mapping[str, Any], where: str) -> None:
    for word in ("stream", "background"):
        if word in request:
            raise JobError(f"{where}: request.{word} is set by batchrun itself; take it out")


def _checked(endpoint: EndpointJob, where: str) -> EndpointJob:
    """With a base URL as it is used. Raises `JobError`."""
    if not VARIABLE.fullmatch(endpoint.api_key_env):
        raise JobError(
            f"{where}: endpoint.api_key_env is not the name of an environment variable (what it "
            "holds is not shown, since it may be a key); put the key into a variable and name that"
        )
    _check_key_command(endpoint, where)
    return replace(endpoint, base_url=_base_url(endpoint.base_url))


def _check_key_command(endpoint: EndpointJob, where: str) -> None:
    """Raises `JobError` where a key has two sources, or a setting would do nothing."""
    if endpoint.api_key_command is None:
        if endpoint.api_key_ttl_s is not None:
            raise JobError(
                f"{where}: endpoint.api_key_ttl_s says when endpoint.api_key_command is run again, "
                "but there is no such command; give it with --api-key-command"
            )
        return
    if not endpoint.api_key_command.strip():
        raise JobError(f"{where}: endpoint.api_key_command is empty; write the command")
    other = None if endpoint.api_key_env == DEFAULT_KEY_ENV else "endpoint.api_key_env"
    if any(name.lower() == "authorization" for name in endpoint.headers):
        other = "a header Authorization in endpoint.headers"
    if other is not None:
        raise JobError(
            f"{where}: endpoint.api_key_command gives the key, and so does {other}; take one out"
        )


def _read_job_file(path: Path) -> dict[str, Any]:
    """The tables of a job file, with paths as seen from here."""
    tree = _read_toml(path)
    refuse_keys(tree, str(path))
    _check_tables(tree, _TABLES, str(path))
    for section in ("input", "output"):
        value = tree.setdefault(section, {}).get("path")
        if isinstance(value, str) and value != STDIN and "://" not in value:
            tree[section]["path"] = str(path.parent / value)
    limits = tree.get("limits", {})
    if isinstance(limits.get("stop_at"), datetime | time):  # TOML has values of its own for these
        limits["stop_at"] = limits["stop_at"].isoformat()
    return tree


def _table(tree: Mapping[str, Any], section: str, key: str) -> Mapping[str, Any]:
    """Empty where the file has none, or something else."""
    of_section = tree.get(section)
    table = of_section.get(key) if isinstance(of_section, dict) else None
    return table if isinstance(table, dict) else {}


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *tables, last = dotted.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            inner = tree[table] = {}
        tree = inner
    tree[last] = value


def _name_of(source: str) -> str:
    is_local = not is_remote(source)
    if source == STDIN or (is_local and any(letter in source for letter in "*?[")):
        return ""
    if (
        is_local and (Path(source) / "run.json").is_file()
    ):  # a run directory; its answers are another run's rows
        return ""
    name = Path(source).resolve().name if is_local else name_of(source)
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
        raise JobError(f"the base URL is not a URL; {how}") from None
    if "@" in parts.netloc:
        raise JobError(f"the base URL holds a user name or password; take it out, {how}")
    if parts.query or parts.fragment:
        raise JobError(f"the base URL has a query or fragment; put it in [endpoint.query], {how}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise JobError(f"the base URL {shown(text)} is not an http or https URL; {how}")
    if any(letter.isspace() for letter in url):
        raise JobError(f"the base URL {shown(text)} holds white space; {how}")
    return url


def with_user_prices(
    pricing: Pricing, aliases: Aliases, path: Path | None = None
) -> tuple[Pricing, Aliases]:
    """What a job says, and besides what the user's file says. Raises `JobError`.

    `path` is the user's file, by default `user_file()`; it need not exist.
    """
    path = path or user_file()
    tree = _read_toml(path, may_be_missing=True) if path else {}
    _check_tables(tree, _PRICE_TABLES, str(path))
    user_pricing, user_aliases = _read_prices(tree, str(path))
    # A name that the job explains by an alias is not priced by the user's file, and vice versa.
    own = {name: price for name, price in user_pricing.items() if name not in aliases}
    others = {name: target for name, target in user_aliases.items() if name not in pricing}
    return {**own, **pricing}, {**others, **aliases}


def user_file() -> Path | None:
    """Where the user's prices are looked for; null where there is no home that may be entered."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    except RuntimeError:
        return None
    path = folder / "batchrun" / "prices.toml"
    return path if path.is_absolute() and _may_be_there(path) else None


def _may_be_there(path: Path) -> bool:
    """Whether it is there, as far as this user may know: a home may be closed to them."""
    try:
        path.stat()
    except OSError as error:
        return not isinstance(error, PermissionError)
    return True


def _read_prices(tree: Mapping[str, Any], where: str) -> tuple[Pricing, Aliases]:
    """`[pricing]` and `[aliases]`, checked. Raises `JobError` where a price or a name is wrong."""
    pricing: dict[str, PriceJob] = {}
    for model, table in tree.get("pricing", {}).items():
        if not isinstance(table, dict):
            raise JobError(f'{where}: pricing.{model} is not a table; write [pricing."MODEL"]')
        for key in (key for key, value in table.items() if isinstance(value, dict)):
            raise JobError(
                f"{where}: [pricing.{model}.{key}]: put the model's name in quotes, such as "
                f'[pricing."{model}.{key}"]'
            )
        pricing[model] = _read_section(table, PriceJob, f'{where}: [pricing."{model}"]')
    aliases = tree.get("aliases", {})
    for name, target in aliases.items():
        if isinstance(target, dict):
            whole = f"{name}.{next(iter(target), 'NAME')}"
            example = f'"{whole}" = "gpt-6-luna"'
            raise JobError(f"{where}: [aliases] {whole}: put the name in quotes, such as {example}")
        if not isinstance(target, str) or not target.strip():
            raise JobError(
                f'{where}: [aliases] "{name}" is {shown(target)}; it must be the name of a model '
                'in the price list, such as "gpt-6-luna"'
            )
        if name in pricing:
            raise JobError(f'{where}: "{name}" has a price and an alias; take one out')
    return pricing, aliases


def _read_toml(path: Path, *, may_be_missing: bool = False) -> dict[str, Any]:
    """The file's tables. Raises `JobError`."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error


def _check_tables(tree: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises `JobError` unless the tree consists of tables with known names."""
    for name, table in tree.items():
        if name not in known:
            raise JobError(f"{where}: unknown section [{name}]; {nearest(name, known)}")
        if not isinstance(table, dict) and name not in ("scorers", "variants"):
            raise JobError(f"{where}: {name} must be a table: write [{name}]")


def load_scorers(path: Path) -> tuple[ScorerJob, ...]:
    """`[[scorers]]` of a job file, or of a file of their own. Raises `JobError`."""
    tree = _read_toml(path)
    refuse_keys(tree, str(path))
    _check_tables(tree, _TABLES, str(path))
    return read_scorers(tree.get("scorers", []), str(path), path.parent)


def _tables_of(name: str, tables: Any, where: str) -> list[Any]:
    """The same. Raises `JobError` where it is no list of tables."""
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise JobError(f"{where}: {name} must be a list of tables: write [[{name}]]")
    return tables


def read_scorers(tables: Any, where: str, folder: Path) -> tuple[ScorerJob, ...]:
    """The scorers, with paths in full that are relative to `folder`. Raises `JobError`."""
    scorers: list[ScorerJob] = []
    for number, table in enumerate(_tables_of("scorers", tables, where), 1):
        kind = table.get("kind")
        what = f"{where}: [[scorers]] {number}"
        if kind not in KINDS:
            said = f"kind {shown(kind)} is not known" if "kind" in table else "it has no kind"
            raise JobError(f"{what}: {said}; {nearest(str(kind), KINDS)}")
        named = {"name": kind, **table}
        scorer = _in_full(_read_section(named, KINDS[kind], f"{what} ({named['name']})"), folder)
        if any(scorer.name == one.name for one in scorers):
            raise JobError(
                f"{what}: there is another scorer {shown(scorer.name)}; give each a name of its own"
            )
        scorers.append(scorer)
    return tuple(scorers)


def _in_full(scorer: ScorerJob, folder: Path) -> ScorerJob:
    """With its paths in full: they are read from another folder later."""
    targets = scorer.targets
    if targets is not None:
        path = str((folder / targets.file).resolve())
        scorer = replace(scorer, targets=replace(targets, file=path))
    if isinstance(scorer, JsonJob) and isinstance(scorer.schema, str):
        return replace(scorer, schema=str((folder / scorer.schema).resolve()))
    if isinstance(scorer, PythonJob):
        return replace(scorer, function=str((folder / scorer.function).resolve()))
    return scorer


def _read_section(table: Mapping[str, Any], kind: type[Section], where: str) -> Section:
    """The table as a section of this kind. Raises `JobError`."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).rstrip("`").partition(" - at `$.")
        hint: Any = kind
        value: Any = table
        for key in path.partition("[")[0].split(".") if path else ():
            hint, value = _annotation(hint, key), value.get(key)
        if unknown := _UNKNOWN.match(problem):
            name = f"{path}.{unknown[1]}" if path else unknown[1]
            problem = f"unknown key {name}; {nearest(unknown[1], hint.__struct_fields__)}"
        elif missing := _MISSING.match(problem):
            problem = f"{path}.{missing[1]} is missing" if path else f"{missing[1]} is missing"
        elif expected := _expected(hint):
            problem = f"{path} is {_in_toml(value)}; it must be {expected}"
        elif path:
            problem = f"{path}: {problem}"
        raise JobError(f"{where}: {problem}") from None


def _in_toml(value: object) -> str:
    """The value in a message; TOML has words for numbers that JSON has none for."""
    is_number = isinstance(value, float) and math.isfinite(value)
    return shown(value) if is_number or not isinstance(value, float) else str(value)


def read_setting(dotted: str, text: str) -> Any:
    """The value of a job key, from the text of its option. Raises `JobError`."""
    hint: Any = Job
    for key in dotted.split("."):
        hint = _annotation(hint, key)
    readers: tuple[Callable[[str], object], ...] = (str, int, float)
    for read in readers:
        with suppress(ValueError, msgspec.ValidationError):
            return msgspec.convert(read(text), hint)
    raise JobError(f"it must be {_expected(hint)}, not {shown(text)}")


def _annotation(kind: Any, key: str) -> Any:
    """That of a field; null within a table of any names."""
    return get_type_hints(kind, include_extras=True).get(key)


def _expected(hint: Any) -> str:
    """What a value must be, by the bounds and words of its annotation; empty where it has none."""
    kinds: list[str] = []
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            kinds += get_args(part)
        for meta in getattr(part, "__metadata__", ()):
            kinds.append(meta.description or f"a number from {meta.ge:g} up")
    return " or ".join(filter(None, (", ".join(kinds[:-1]), *kinds[-1:])))
