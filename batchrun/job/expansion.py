"""The requests that each row becomes: one for each variant and sample, and their numbers.

Requests are numbered in the order in which they are sent: row, then variant, then sample. Without
samples and variants the number of a request is that of its row.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

from msgspec import Struct

from batchrun.formats.amounts import plural
from batchrun.records import BadRow, Request, RunRecord


class Expansion(Struct, frozen=True):
    """How many requests each row becomes, and what they are called."""

    samples: int = 1
    variants: tuple[str | None, ...] = (None,)  # names; null where none is declared

    @property
    def width(self) -> int:
        """Requests for each row."""
        return self.samples * len(self.variants)

    @property
    def is_declared(self) -> bool:
        """Whether there are variants."""
        return self.variants != (None,)

    @property
    def is_plain(self) -> bool:
        """Whether each row is one request, known by its id alone."""
        return self.samples == 1 and not self.is_declared

    def in_words(self, rows: int) -> str:
        """`1,319 rows x 2 variants x 4 samples`."""
        variants = plural(len(self.variants), "variant") if self.is_declared else ""
        samples = plural(self.samples, "sample") if self.samples > 1 else ""
        return " x ".join(filter(None, (plural(rows, "row"), variants, samples)))

    def number(self, request: Request | BadRow) -> int:
        """Of one of these requests."""
        return self.first_sample(request.row, request.variant) + request.sample

    def first_sample(self, row: int, variant: str | None) -> int:
        """The number of the first request of a row in a variant."""
        return (row * len(self.variants) + self.variants.index(variant)) * self.samples

    def sample_and_variant(self, number: int) -> tuple[int, str | None]:
        """Of the request with this number."""
        at, sample = divmod(number % self.width, self.samples)
        return sample, self.variants[at]

    def of_rows(self, marks: bytearray) -> bytearray:
        """Marks of rows as marks of their requests."""
        if self.width == 1:
            return marks
        wide = bytearray(len(marks) * self.width)
        for offset in range(self.width):
            wide[offset :: self.width] = marks
        return wide

    def all_of_row(self, marks: bytearray) -> bytearray:
        """Marks of requests as marks of the rows all of whose requests have one."""
        return self._joined(marks, operator.and_)

    def any_of_row(self, marks: bytearray) -> bytearray:
        """The same of rows with one request or more that has one."""
        return self._joined(marks, operator.or_)

    def _joined(self, marks: bytearray, join: Callable[[int, int], int]) -> bytearray:
        if self.width == 1:
            return marks
        each = (marks[offset :: self.width] for offset in range(self.width))
        joined = reduce(join, (int.from_bytes(one, "little") for one in each))
        return bytearray(joined.to_bytes(len(marks) // self.width, "little"))

    def others(self, rows: int, wanted: Sequence[str | None], samples: int) -> bytearray:
        """Marks of all requests but the first samples of these variants."""
        of_row = bytearray(b"\1" * self.width)
        for at, name in enumerate(self.variants):
            if name in wanted:
                of_row[at * self.samples : at * self.samples + samples] = bytes(samples)
        return of_row * rows


PLAIN = Expansion()


def recorded_expansion(record: RunRecord) -> Expansion:
    """What the last command of a run asked for."""
    samples = record.job.get("expand", {}).get("samples", 1)
    return Expansion(
        samples, tuple(one["name"] for one in record.job.get("variants", ())) or (None,)
    )


def varied(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Tables of `[[variants]]` for the product of dotted request keys and their values.

    They are named by their values: `gpt-5-mini+low`.
    """
    tables = []
    for values in product(*vary.values()):
        request: dict[str, Any] = {}
        for key, value in zip(vary, values, strict=True):
            *above, last = key.split(".")
            table = request
            for name in above:
                table = table.setdefault(name, {})
            table[last] = value
        names = [one if isinstance(one, str) else json.dumps(one) for one in values]
        tables.append({"name": "+".join(names), "request": request})
    return tables
