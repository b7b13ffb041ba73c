"""What the full pass over a source found."""

from array import array

from msgspec import Struct, field

from batchrun.dialects.responses import output_limit
from batchrun.inputs.requests import Draft
from batchrun.job.expansion import PLAIN, Expansion
from batchrun.limits.answer_sizes import is_bounded
from batchrun.records import BadRow, Layout, Request

MAX_MODELS = 1_000  # that are remembered


class Gathered(Struct):
    """What the full pass gathers row by row."""

    expansion: Expansion = PLAIN
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))  # of requests, or bad rows
    is_bad: bytearray = field(default_factory=bytearray)  # 1 for each that cannot be sent
    # 1 where nothing bounds the cost; empty where not asked for
    is_unbounded: bytearray = field(default_factory=bytearray)
    models: dict[str | None, None] = field(default_factory=dict)  # None: rows name no model
    body_bytes: int = 0  # sum

    @property
    def rows(self) -> int:
        """Those of the table: one for each request."""
        return len(self.hashes)

    @property
    def source_rows(self) -> int:
        return len(self.hashes) // self.expansion.width

    @property
    def bad_rows(self) -> int:
        """Of the table."""
        return self.is_bad.count(1)

    def add(self, draft: Draft, *, mark_unbounded: bool) -> None:
        """One more request of a row, but its first."""
        body = draft.body
        self.hashes.append(draft.hash)
        self.is_bad.append(body is None)
        if mark_unbounded:
            bounded = body is None or is_bounded(draft.written, output_limit(body))
            self.is_unbounded.append(not bounded)
        if body is not None:
            self.body_bytes += len(draft.written)
            if len(self.models) < MAX_MODELS:
                self.models[body.get("model")] = None


class Survey(Gathered, kw_only=True):
    """What the full pass found."""

    layout: Layout
    ids: "array[int] | None"  # 'q': hash(custom_id) of each row; None: known by number alone
    carried_bytes: int  # sum, an estimate
    sent: tuple[str, ...]  # source columns, in order of first appearance
    carried: tuple[str, ...]
    first: Request | None
    problems: tuple[BadRow, ...]  # the first ten
    warnings: tuple[str, ...]
    forms: dict[str, int] = field(default_factory=dict)  # what rows were taken for, to their number
    refusal: str | None = None  # why the template cannot be meant
