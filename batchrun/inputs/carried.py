"""What a row carries into `responses`: the values of the pinned columns, in their order."""

from typing import Any

from batchrun.inputs.fits import Misfit, json_fit, misfit
from batchrun.inputs.rows import NOTHING, Row
from batchrun.job import InputJob
from batchrun.records import Layout


class Carrier:
    """Takes from a row what it carries, in the order of the layout."""

    def __init__(self, layout: Layout, input_job: InputJob) -> None:
        self.explicit = frozenset(input_job.types)
        self._always = input_job.carry is not None  # also what is sent
        self._columns = tuple(
            (column.column, json_fit(column, explicit=column.column in self.explicit), column)
            for column in layout.columns
        )
        self._names = frozenset(name for name, _, _ in self._columns)

    def values(self, row: Row, consumed: frozenset[str]) -> tuple[Any, ...]:
        """Null where the row lacks a column or sends it. Raises `InputError` for a misfit."""
        if self._always or consumed.isdisjoint(self._names):
            consumed = NOTHING
        if row.columns:
            if not consumed:
                return row.carried
            return tuple(
                None if name in consumed else value
                for (name, _, _), value in zip(self._columns, row.carried, strict=True)
            )
        data = row.data or {}
        values: list[Any] = []
        for name, fit, column in self._columns:
            value = data.get(name)
            if value is None or name in consumed:
                values.append(None)
                continue
            try:
                values.append(fit(value))
            except Misfit as what:
                raise misfit(row.place, column, what) from None
        return tuple(values)
