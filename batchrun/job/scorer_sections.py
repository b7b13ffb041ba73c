"""`[[scorers]]`: how answers are scored, a frozen section for each kind."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from batchrun.formats.json_text import shown

OUTPUT_TEXT = "{{ output_text }}"
_NAME = r"^[a-z0-9_-]{1,40}$"
Name = Annotated[
    str, Meta(pattern=_NAME, description="1 to 40 of the characters a-z, 0-9, _ and -")
]
Tolerance = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0.001)]


class TargetsJob(Struct, frozen=True, forbid_unknown_fields=True):
    """`targets`: a file of targets, which win over what the run carries."""

    file: str
    id: str = "id"  # its column that has the `custom_id`
    column: str = "answer"


class ScorerJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What scorers of all kinds have."""

    name: Name
    kind: str
    input: str = OUTPUT_TEXT  # a template over the row's columns
    # A column, or a template; null: `target`, else `answer`; false: there is none.
    target: str | bool | None = None
    targets: TargetsJob | None = None
    threshold: float = 1.0  # a value at or above it is `passed`

    def __post_init__(self) -> None:
        if self.target is True or (isinstance(self.target, str) and not self.target.strip()):
            raise ValueError("target is a column, a template, or false where there is none")
        if self.targets is not None and self.target is False:
            raise ValueError("target = false and targets contradict each other; take one out")


class ExactJob(ScorerJob, frozen=True, kw_only=True):
    """`exact`: the texts are the same."""

    ignore_case: bool = False
    ignore_punctuation: bool = False
    normalize: Literal["none", "nfkc", "squad"] = "none"


class IncludesJob(ScorerJob, frozen=True, kw_only=True):
    """`includes`: the text contains the target."""

    ignore_case: bool = True
    all: bool = False  # of several targets all
    word: bool = False  # as a word of its own


class RegexJob(ExactJob, frozen=True, kw_only=True):
    """`regex`: what a pattern finds is the target; without one, that it finds anything."""

    pattern: str
    group: int | str = 1
    which: Literal["last", "first"] = "last"
    timeout_s: Seconds = 5.0  # for one row

    def __post_init__(self) -> None:
        super().__post_init__()
        pattern = _compiled(self.pattern, "pattern")
        known = [*range(pattern.groups + 1), *pattern.groupindex]
        if self.group not in known and not (pattern.groups == 0 and self.group == 1):
            raise ValueError(f"pattern has no group {shown(self.group)}")


class NumberJob(ScorerJob, frozen=True, kw_only=True):
    """`number`: the number that the text gives is the target."""

    after: str | None = None  # a regular expression; the number comes after its last match
    which: Literal["last", "first", "only"] = "last"
    abs_tol: Tolerance = 0.0
    rel_tol: Tolerance = 0.0
    timeout_s: Seconds = 5.0  # for one row, where `after` is given

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None:
            _compiled(self.after, "after")


class ChoiceJob(ScorerJob, frozen=True, kw_only=True):
    """`choice`: which of several choices the text names."""

    letters: Annotated[str, Meta(min_length=2, description="letters such as 'ABCD'")] = "ABCD"
    column: str | None = None  # of the row, with the texts of the choices as a list


class JsonJob(ScorerJob, frozen=True, kw_only=True):
    """`json`: the text is the JSON of the target, or fits a schema."""

    equal: bool = True
    # A file, or the schema itself; then there is no target.
    schema: str | dict[str, Any] | None = None
    paths: tuple[str, ...] = ()  # only what stands there is compared
    unordered: bool = False  # lists are the same in any order
    partial: bool = False  # the share of equal leaves

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schema is not None and (self.paths or self.unordered or self.partial):
            raise ValueError("schema does not go with paths, unordered or partial")
        if not self.equal and self.schema is None and not self.paths:
            raise ValueError("equal = false needs schema or paths")


class ToolCallsJob(ScorerJob, frozen=True, kw_only=True):
    """`tool_calls`: the calls are those expected; `expected` is another word for `target`."""

    expected: str | None = None
    values: Literal["exact", "any_of"] = "exact"
    order: Literal["any", "same"] = "any"
    count: Literal["exact", "at_least"] = "exact"
    extra_arguments: Literal["forbidden", "allowed"] = "forbidden"
    strings: Literal["exact", "fold"] = "exact"
    types: Literal["json", "python"] = "json"
    partial: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expected is not None and self.target is not None:
            raise ValueError("expected and target say the same; take one out")


class SimilarityJob(ScorerJob, frozen=True, kw_only=True):
    """`similarity`: how alike the texts are, from 0 to 1."""

    measure: Literal["ratio", "token_sort", "jaro_winkler"] = "ratio"


class MathJob(ScorerJob, frozen=True, kw_only=True):
    """`math`: the expressions mean the same."""

    timeout_s: Seconds = 10.0  # for one row


class PythonJob(ScorerJob, frozen=True, kw_only=True):
    """`python`: a function of the user."""

    function: str  # file.py:name
    rows: Literal["one", "samples", "variants"] = "one"  # what it is given at once
    timeout_s: Seconds = 60.0  # for one call

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r".+\.py:\w+", self.function):
            raise ValueError(f"function is {shown(self.function)}; write it as file.py:name")


KINDS: Mapping[str, type[ScorerJob]] = {
    "exact": ExactJob,
    "includes": IncludesJob,
    "regex": RegexJob,
    "number": NumberJob,
    "choice": ChoiceJob,
    "json": JsonJob,
    "tool_calls": ToolCallsJob,
    "similarity": SimilarityJob,
    "math": MathJob,
    "python": PythonJob,
}


def _compiled(pattern: str, key: str) -> re.Pattern[str]:
    """Raises `ValueError`."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} is not a regular expression: {error}") from None
    except RecursionError:
        raise ValueError(f"{key} is nested too deeply") from None
