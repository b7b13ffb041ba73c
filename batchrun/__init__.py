"""Bulk requests to an OpenAI-style Responses API: prompt sets in, Parquet tables out.

    import batchrun

    job = batchrun.load_job("prompts.jsonl", {"request.model": "gpt-6-luna"})
    summary = batchrun.run(job)                # in a notebook: await batchrun.run_async(job)
    print(summary.state, summary.ok, summary.left, summary.cost_usd)
    tables = batchrun.open_run(summary.run)
    tables.responses.to_table(columns=["custom_id", "output_text"]).to_pandas()

Heavy libraries are imported when a function needs them, not with the package.
"""

import warnings
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from batchrun.errors import (
    BatchrunError,
    InputError,
    Interrupted,
    JobError,
    RunStopped,
    StoreError,
)
from batchrun.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow.dataset

    from batchrun.evals.compare import compare
    from batchrun.evals.metrics import metrics
    from batchrun.evals.score_run import score
    from batchrun.job.job_file import load_job
    from batchrun.job.sections import Job
    from batchrun.progress.summary import Summary
    from batchrun.records import Resend
    from batchrun.runner.ending import StopSwitch

__version__ = VERSION

__all__ = [
    "BatchrunError",
    "InputError",
    "Interrupted",
    "Job",
    "JobError",
    "Resend",
    "RunStopped",
    "StopSwitch",
    "StoreError",
    "Summary",
    "Tables",
    "__version__",
    "compare",
    "load_job",
    "metrics",
    "open_run",
    "run",
    "run_async",
    "score",
]


_HOMES = {
    "Job": "job.sections",
    "Resend": "records",
    "StopSwitch": "runner.ending",
    "Summary": "progress.summary",
    "compare": "evals.compare",
    "load_job": "job.job_file",
    "score": "evals.score_run",
    "metrics": "evals.metrics",
}


def __getattr__(name: str) -> Any:
    """The names above whose modules are imported when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
    return getattr(import_module(f"batchrun.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class Tables(NamedTuple):
    """A run's tables, as far as they are in Parquet; the journal's rows come with the next seal."""

    responses: "pyarrow.dataset.Dataset"
    tool_calls: "pyarrow.dataset.Dataset"


def run(
    job: "Job",
    *,
    simulate: bool = False,
    limit: int | None = None,
    variants: "Sequence[str]" = (),
    resend: "Resend | None" = None,
    insecure_http: bool = False,
    progress: "Callable[[Summary], None] | None" = None,
    stop: "StopSwitch | None" = None,
) -> "Summary":
    """Runs or resumes `job` to its end; for code without a running event loop.

    The summary's `exit_code` says how it ended: 0 every row ok, 3 stopped early, 4 some rows not
    ok, 130 asked to stop by `stop.ask()`, which any thread may call. `progress` gets the summary
    of the run, four times a second and at its end, on the run's thread; what it raises becomes a
    warning. `resend` says which complete rows to send again, `variants` which variants to send now
    (empty: all). `insecure_http` allows a key over plain http to another machine. Nothing of the
    process is changed: no signal handler, no setting of the interpreter. Raises `JobError` and
    `InputError` before anything is sent, `Interrupted`
    where it was asked to stop by then, `StoreError` where the disk fails.
    """
    import asyncio  # noqa: PLC0415 - see above

    from batchrun.runner.start import new_event_loop  # noqa: PLC0415

    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise BatchrunError(
            "batchrun.run() cannot be called while an event loop runs (a notebook has one); write "
            "`await batchrun.run_async(job)` there"
        )
    with asyncio.Runner(loop_factory=new_event_loop) as loop:
        return loop.run(
            run_async(
                job,
                simulate=simulate,
                limit=limit,
                variants=variants,
                resend=resend,
                insecure_http=insecure_http,
                progress=progress,
                stop=stop,
            )
        )


async def run_async(
    job: "Job",
    *,
    simulate: bool = False,
    limit: int | None = None,
    variants: "Sequence[str]" = (),
    resend: "Resend | None" = None,
    insecure_http: bool = False,
    progress: "Callable[[Summary], None] | None" = None,
    stop: "StopSwitch | None" = None,
) -> "Summary":
    """The same from a running event loop.

    Cancelling it, as Ctrl-C does to `run`, drops what is in flight; `stop` lets it land.
    """
    from batchrun.records import NOTHING_SENT_AGAIN  # noqa: PLC0415 - see above
    from batchrun.runner.asked_rows import RowSelection  # noqa: PLC0415 - see above
    from batchrun.runner.engine import Watch  # noqa: PLC0415 - see above
    from batchrun.runner.notified import notified  # noqa: PLC0415 - see above
    from batchrun.runner.start import run_job  # noqa: PLC0415

    seen = Watch() if progress is None else Watch(summary=_harmless(progress))
    async with notified(job, seen, command=None, say=lambda _what: None, warn=_warn) as watch:
        return await run_job(
            job,
            RowSelection(limit, variants=tuple(variants), resend=resend or NOTHING_SENT_AGAIN),
            simulate=simulate,
            insecure_http=insecure_http,
            stop=stop,
            watch=watch,
        )


def _warn(problem: str) -> None:
    warnings.warn(f"batchrun: {problem}", stacklevel=2)


def _harmless(progress: "Callable[[Summary], None]") -> "Callable[[Summary], None]":
    """A caller's mistake must not end a paid run: it is warned of, and not called again."""
    failed = False

    def show(summary: "Summary") -> None:
        nonlocal failed
        if failed:
            return
        try:
            progress(summary)
        except Exception as error:  # noqa: BLE001 - whatever it is
            failed = True
            warnings.warn(
                f"batchrun: progress failed and is not called again ({error!r})", stacklevel=2
            )

    return show


def open_run(path: "str | Path") -> Tables:
    """The tables of a run directory, or of a run at the URL of a store, lazily.

    Raises `JobError` where it is none.
    """
    from pathlib import Path  # noqa: PLC0415 - see above

    from batchrun.remote.urls import is_store  # noqa: PLC0415 - see above
    from batchrun.store import reading  # noqa: PLC0415 - see above

    if is_store(str(path)):
        with reading.run_folder(str(path)) as folder:
            return Tables(reading.responses(folder), reading.tool_calls(folder))
    return Tables(reading.responses(Path(path)), reading.tool_calls(Path(path)))
