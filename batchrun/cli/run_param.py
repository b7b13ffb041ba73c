"""The argument RUN: a run directory, or the URL of a run in a store."""

from pathlib import Path
from typing import Any

import click

from batchrun.remote.urls import is_store


class _RunParam(click.Path):
    """Of a URL the folder that the run is read from, which is gone when the command has ended."""

    def __init__(self, *, scores: bool = False) -> None:
        super().__init__(path_type=Path)
        self._scores = scores

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx is None or not isinstance(value, str) or not is_store(value):
            return super().convert(value, param, ctx)
        from batchrun.store.reading import run_folder

        return ctx.with_resource(run_folder(value, scores=self._scores))


RUN = _RunParam()
SCORED_RUN = _RunParam(scores=True)  # for commands that read or write scores
