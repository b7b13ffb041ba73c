"""Prompt sets written to real files and read back through the entry point."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.inputs.prompt_set import PromptSet, Survey, find_source
from batchrun.job.sections import InputJob
from batchrun.records import BadRow, Layout, Request

Rows = list[Request | BadRow]
Write = Callable[..., Path]
Read = Callable[..., tuple[Survey, Rows]]

MODEL = {"model": "m"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (objects or raw bytes) as JSON Lines."""

    def write(*rows: object, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def read() -> Read:
    """Surveys a prompt set, reads all its requests, and holds the two against each other."""

    def read(
        path: Path | str,
        request: dict[str, Any] | None = None,
        *,
        pinned: Layout | None = None,
        **input_job: Any,
    ) -> tuple[Survey, Rows]:
        job = InputJob(path=str(path), **input_job)
        prompts = PromptSet(find_source(job), job, MODEL if request is None else request)
        survey = prompts.survey(pinned)
        rows = list(prompts.requests(survey.layout, bytearray(survey.rows)))
        assert [row.row for row in rows] == list(range(survey.rows))
        assert [int(row.hash, 16) for row in rows] == list(survey.hashes)
        bad = [row for row in rows if isinstance(row, BadRow)]
        assert len(bad) == survey.bad_rows
        assert [row.message for row in bad[:10]] == [row.message for row in survey.problems]
        if survey.ids is not None:
            assert [hash(row.custom_id) for row in rows] == list(survey.ids)
        else:
            assert [row.custom_id for row in rows] == [str(row.row) for row in rows]
        good = [row for row in rows if isinstance(row, Request)]
        assert survey.first == (good[0] if good else None)
        assert survey.body_bytes == sum(len(row.body) for row in good)
        return survey, rows

    return read
