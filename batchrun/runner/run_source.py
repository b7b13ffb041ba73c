"""The source of a run directory from command to command: the same, moved, or appended.

What a run directory holds is known by the ids of its rows and their requests, not by the path that
they were read from.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from batchrun.errors import InputError, JobError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import as_utf8
from batchrun.inputs.identity import BAD_ROW
from batchrun.inputs.prompt_set import PromptSet, Source, Survey, find_source
from batchrun.inputs.requests import HASH_RULE, OLDER_HASH_RULE
from batchrun.inputs.sources import check_stdin, store_stdin
from batchrun.job.sections import STDIN, Job
from batchrun.records import RunRecord
from batchrun.remote.urls import hub_url, is_remote
from batchrun.runner.output_place import store_run_url
from batchrun.store.files import APPENDED_COPY, INPUT, STDIN_COPY, storing, sync_path
from batchrun.store.run_dir import RunDir


def stored_input(
    job: Job, run_dir: RunDir, check: Callable[[], None] = lambda: None
) -> tuple[Source, str | None]:
    """Standard input, stored in the run directory, and its hash. Raises what `check` raises.

    What is appended stands beside the last input until `accept_input` or `drop_input` is called.
    """
    copy, record, stream = run_dir.input_dir / STDIN_COPY, run_dir.record, sys.stdin.buffer
    before = None if record is None else record.input_sha256
    drop_input(run_dir)  # of a command that was killed
    if before is None:  # nothing, or a file, was the input before
        return find_source(job.input, copy), store_stdin(stream, copy, check)
    if sys.stdin.isatty():
        return find_source(job.input, copy), before
    if not appends(job, record):
        check_stdin(stream, copy, before, check)
        return find_source(job.input, copy), before
    new = copy.with_name(APPENDED_COPY)
    sha256 = store_stdin(stream, new, check)
    if new.stat().st_size == 0 or sha256 == before:
        new.unlink()
        return find_source(job.input, copy), before
    if (left := unsent_rows(run_dir)) > 0:
        new.unlink()
        raise InputError(
            f"{plural(left, 'row')} of the last standard input have no outcome yet; send them "
            "first, with the same command and < /dev/null, then append more"
        )
    return find_source(job.input, new), sha256


def accept_input(run_dir: RunDir, prompts: PromptSet) -> None:
    """What was appended takes the place of the last input. Raises `StoreError`."""
    new = run_dir.path / INPUT / APPENDED_COPY
    if prompts.reads(new):
        with storing(new, "rename"):
            new.replace(new.with_name(STDIN_COPY))
            sync_path(new.parent)
        prompts.move_to(new.with_name(STDIN_COPY))


def drop_input(run_dir: RunDir) -> None:
    """What was to be appended and was not accepted is gone."""
    with suppress(OSError):
        (run_dir.path / INPUT / APPENDED_COPY).unlink()


def appends(job: Job, record: RunRecord | None) -> bool:
    """Whether the input holds further rows only; the run directory remembers that it did."""
    return job.input.append or (record is not None and record.appends)


def fixed_bad_rows(prompts: PromptSet, survey: Survey, names: Mapping[int, str]) -> set[int]:
    """Of stored bad rows without a name: those that this source has, and that can be sent now.

    `names`: by any number, the file and line that stand for the name. Raises `InputError`.
    """
    wanted: dict[str, list[int]] = {}
    for index, name in names.items():
        place, mark, _ = name.partition(BAD_ROW)
        if mark and place.rpartition(":" if ":" in place else ", row ")[0] in prompts.file_names:
            wanted.setdefault(place, []).append(index)
    if not wanted:  # nearly always: else the source is read once more
        return set()
    width = survey.expansion.width
    places = ((wanted.get(str(row)), row.row * width) for row in prompts.plain_rows())
    found = (some for some, number in places if some is not None and not survey.is_bad[number])
    return {index for some in found for index in some}


def unsent_rows(run_dir: RunDir) -> int:
    """Rows of the last input without an outcome, as far as `run.json` knows."""
    record = run_dir.record
    return 0 if record is None else record.rows - record.totals.rows + record.again


def refuse_other_use(run_dir: RunDir, *, simulate: bool) -> None:
    """A run directory belongs to one kind of endpoint, and to one rule. Raises `JobError`."""
    record = run_dir.record
    if record is None:
        return
    if record.imported:
        raise JobError(
            f"{run_dir.path}: this run directory holds imported answers, to which nothing is sent; "
            "choose another with -o"
        )
    if record.simulated != simulate:
        was, now = ("simulated", "real") if record.simulated else ("real", "simulated")
        raise JobError(
            f"{run_dir.path}: this run directory holds {was} answers, and the run asked for is "
            f"{now}; choose another with -o"
        )
    if record.hash_rule not in (HASH_RULE, OLDER_HASH_RULE):
        raise JobError(
            f"{run_dir.path}: its requests were hashed by rule {record.hash_rule} of batchrun "
            f"{record.batchrun}, and this version has rule {HASH_RULE}; use that version, or "
            "choose another directory with -o"
        )


def about_source(job: Job, run_dir: RunDir, survey: Survey, new_rows: int) -> list[str]:
    """What is said where the source is another one than that of the command before."""
    record = run_dir.record
    if record is None:
        return []
    # The same source, where both were moved together or the run alone.
    is_named_so = record.source == source_name(job, run_dir.path)
    is_same = is_named_so or full_source(job) == record.source_path != ""
    was = "standard input" if record.source == STDIN else record.source_path or record.source
    if appends(job, record):
        left = unsent_rows(run_dir)
        if left <= 0 or (is_same and left == new_rows):
            return []
        unsent = (
            f"when the last command ended, {plural(left, 'row')} of {was} had no outcome; those "
            "that this input does not hold are not sent: to send them, give that input again"
        )
        return [unsent]
    if is_same:
        return []
    now = "standard input" if job.input.path == STDIN else job.input.path
    known = "ids" if survey.ids is not None else "numbers"
    moved = (
        f"the source was {was} and is {now} now; rows are known by their {known} and requests, so "
        "the run continues"
    )
    return [moved]


def source_name(job: Job, run_path: Path) -> str:
    """The source as seen from the run directory, so that both can be moved together."""
    if job.input.path == STDIN or is_remote(job.input.path):
        return as_utf8(job.input.path)
    if store_run_url(job, run_path) is not None:  # it may be gone on with from another folder
        return full_source(job)
    try:
        name = os.path.relpath(Path(job.input.path).resolve(), run_path.resolve())
    except ValueError:  # another drive
        name = str(Path(job.input.path).resolve())
    return as_utf8(name)


def full_source(job: Job) -> str:
    """Empty for standard input."""
    if is_remote(job.input.path):
        return as_utf8(job.input.path)
    return "" if job.input.path == STDIN else as_utf8(str(Path(job.input.path).resolve()))


def pinned_source(job: Job, source: Source, record: RunRecord | None) -> Source:
    """The source at the commit that the run has begun with, unless the URL names a revision.

    Raises as `find_source`.
    """
    commit = None if record is None else record.source_commit
    if commit is None or source.commit in (None, commit) or hub_url(source.spec).revision:
        return source
    old = find_source(replace(job.input, path=str(replace(hub_url(source.spec), revision=commit))))
    moved = f"{source.spec}: the data set has changed since; this run stays with commit {commit}"
    return replace(old, warnings=(*old.warnings, moved))
