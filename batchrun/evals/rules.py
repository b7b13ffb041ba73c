"""Scorers by their sections: what each makes of an answer, and the version of its rule.

A version changes with the rule, its options, the file of a function, and the libraries it uses.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job import scorer_sections as sections
from batchrun.job.scorer_sections import ScorerJob
from batchrun.scoring.call_match import Call, call_match, expected_calls, given_call
from batchrun.scoring.choice import choice
from batchrun.scoring.json_match import json_match, schema_match, validity
from batchrun.scoring.math_match import math_verifier
from batchrun.scoring.numbers import number
from batchrun.scoring.score import Score, target_texts, text_of
from batchrun.scoring.text_match import exact, includes, normaliser, regex
from batchrun.scoring.text_similarity import measure_of, similarity

# The text that is scored, the target as it was read, and what else there is: calls, or choices.
Scorer = Callable[[str, Any, Any], Score]

# Raised when the rule of a kind changes: then all is scored anew.
_RULES = {**dict.fromkeys(sections.KINDS, 1), "number": 2}
_LIBRARIES = {"similarity": "rapidfuzz", "math": "math-verify", "json": "jsonschema-rs"}
_WITH_TARGET_IF_ANY = ("regex", "python")  # kinds that make sense without


def needs_target(job: ScorerJob) -> bool:
    """Whether there must be one, named or by default."""
    if job.kind in _WITH_TARGET_IF_ANY:
        return False
    return not (isinstance(job, sections.JsonJob) and job.schema is not None)


def takes_target(job: ScorerJob) -> bool:
    """Whether one is used, if it is there."""
    return not (isinstance(job, sections.JsonJob) and job.schema is not None)


def is_structured(job: ScorerJob) -> bool:
    """Whether the target is one value of JSON, and a list is no choice of targets."""
    return isinstance(job, sections.JsonJob | sections.ToolCallsJob | sections.PythonJob)


def may_hang(job: ScorerJob) -> bool:
    """Whether it runs a pattern or code of the user, or of a library that can: in a process."""
    return isinstance(job, sections.RegexJob | sections.MathJob | sections.PythonJob) or (
        isinstance(job, sections.NumberJob) and job.after is not None
    )


def time_limit_s(job: ScorerJob) -> float:
    """For one row, where `may_hang`."""
    limit: float = getattr(job, "timeout_s")  # noqa: B009 - three of the kinds have it
    return limit


def rule_version(job: ScorerJob) -> str:
    """16 hex digits. Raises `JobError` where the file of a function cannot be read."""
    said = msgspec.to_builtins(job)
    if job.target is not False:  # where targets come from: each is hashed with what is scored
        said.pop("target")
    for name in ("name", "targets", "expected", "timeout_s"):  # of no consequence for a score
        said.pop(name, None)
    said["rule"] = _RULES[job.kind]
    if isinstance(job, sections.PythonJob):
        path, _, name = job.function.rpartition(":")
        said["function"] = [name, hashlib.sha256(_read(Path(path))).hexdigest()]
    if isinstance(job, sections.JsonJob) and job.schema is not None:
        said["schema"] = schema_of(job)
    if job.kind in _LIBRARIES:
        try:
            said["library"] = version(_LIBRARIES[job.kind])
        except PackageNotFoundError:
            said["library"] = None
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def schema_of(job: sections.JsonJob) -> Any:
    """The JSON Schema, from its file where that is named. Raises `JobError`."""
    if not isinstance(job.schema, str):
        return job.schema
    try:
        said = json.loads(_read(Path(job.schema)).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise JobError(f"{job.schema}: not JSON: {error}") from None
    wrapped = said.get("schema") if isinstance(said, dict) else None
    return wrapped if isinstance(wrapped, dict) else said


def make_scorer(job: ScorerJob) -> Scorer:
    """What scores one answer; not for `python`. It raises `BadTarget`.

    Raises `JobError` where the options name what cannot be, `MissingLibrary`.
    """
    match job:
        case sections.RegexJob():
            return _regex(job)
        case sections.ExactJob():
            normalise = _normaliser(job)
            return lambda text, target, _: exact(text, target_texts(target), normalise)
        case sections.IncludesJob():
            how = partial(includes, ignore_case=job.ignore_case, every=job.all, word=job.word)
            return lambda text, target, _: how(text, target_texts(target))
        case sections.NumberJob():
            return _number(job)
        case sections.ChoiceJob():
            return lambda text, target, choices: choice(
                text, target_texts(target), letters=job.letters, choices=choices or ()
            )
        case sections.JsonJob():
            return _json(job)
        case sections.ToolCallsJob():
            return _calls(job)
        case sections.SimilarityJob():
            measure = measure_of(job.measure)
            return lambda text, target, _: similarity(text, target_texts(target), measure)
        case sections.MathJob():
            verify = math_verifier()
            return lambda text, target, _: verify(text, target_texts(target))
    raise TypeError(job.kind)


def _normaliser(job: sections.ExactJob) -> Callable[[str], str]:
    return normaliser(
        ignore_case=job.ignore_case,
        ignore_punctuation=job.ignore_punctuation,
        normalize=job.normalize,
    )


def _regex(job: sections.RegexJob) -> Scorer:
    pattern, normalise = re.compile(job.pattern), _normaliser(job)

    def score(text: str, target: Any, _: Any) -> Score:
        targets = None if target is None else target_texts(target)
        return regex(text, targets, pattern, group=job.group, which=job.which, normalise=normalise)

    return score


def _number(job: sections.NumberJob) -> Scorer:
    how = partial(
        number,
        after=None if job.after is None else re.compile(job.after),
        which=job.which,
        abs_tol=Decimal(str(job.abs_tol)),
        rel_tol=Decimal(str(job.rel_tol)),
    )
    return lambda text, target, _: how(text, target_texts(target))


def _json(job: sections.JsonJob) -> Scorer:
    if job.schema is not None:
        try:
            is_valid = validity(schema_of(job))
        except ValueError as error:
            raise JobError(f"scorer {job.name}: schema is not a JSON Schema ({error})") from None
        return lambda text, _, __: schema_match(text, is_valid)
    how = partial(json_match, paths=job.paths, unordered=job.unordered, partial=job.partial)
    return lambda text, target, _: how(text, (target,))


def _calls(job: sections.ToolCallsJob) -> Scorer:
    def score(_: str, target: Any, calls: Sequence[tuple[str | None, str | None]]) -> Score:
        given: list[Call] = [given_call(name, arguments) for name, arguments in calls]
        return call_match(given, expected_calls(target), job)

    return score


def with_target(job: ScorerJob) -> ScorerJob:
    """With `expected` of tool calls as the target that it is."""
    if isinstance(job, sections.ToolCallsJob) and job.expected is not None:
        return replace(job, target=job.expected, expected=None)
    return job


def written_target(target: Any) -> str | None:
    """As the column `target` shows it."""
    return None if target is None else text_of(target)
