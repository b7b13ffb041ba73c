"""Cuts a source into leases, and reads these as so many workers do, each in a process of its own.

`remote_leases.py plan SOURCE FILE`, then `remote_leases.py read FILE WORKERS`, which says as JSON
how many leases and rows there were, and whether the rows are those of the whole reading, or what
was wrong. Each worker has a cache of the Hub of its own, as on another machine.
"""

import json
import os
import pickle
import sys
from pathlib import Path

from batchrun.errors import BatchrunError
from batchrun.inputs import jsonl, rows
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.job_file import load_job
from batchrun.records import BadRow, Request
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.cluster.leases import lease_requests, planned_rows, renumbered
from batchrun.runner.plan import make_plan
from batchrun.runner.resume import numbered

_GIVEN = {
    "request.model": "m",
    "request.input": "{{ question }}",
    "endpoint.base_url": "http://127.0.0.1:1",
}


def _plan(source: str, file: Path) -> None:
    job = load_job(source, _GIVEN)
    plan = make_plan(
        job, find_source(job.input), None, file.parent / "no-run", RowSelection(), in_parts=True
    )
    planned = planned_rows(plan)
    leases = list(iter(lambda: planned.cut(40), None))
    requests = plan.prompts.requests(plan.layout, plan.resumed.complete)
    whole = list(numbered(requests, plan.resumed))
    file.write_bytes(pickle.dumps((job, plan.prompts.pinned(plan.layout), leases, whole)))
    print(json.dumps([[lease.offset, lease.rows] for lease in leases]))  # noqa: T201


def _read(file: Path, number: int, workers: int) -> None:
    job, pinned, leases, _ = pickle.loads(file.read_bytes())  # noqa: S301 - of this script
    prompts = PromptSet.reopen(pinned, job)
    found = list[Request | BadRow]()
    for lease in leases[number::workers]:
        found += renumbered(lease_requests(prompts, pinned.layout, lease), lease)
    file.with_suffix(f".{number}").write_bytes(pickle.dumps(found))


def _read_all(file: Path, workers: int) -> None:
    for number in range(workers):
        if not os.fork():
            os.environ["HF_HOME"] = f"{os.environ.get('HF_HOME', '')}-{number}"
            try:
                _read(file, number, workers)
            except BatchrunError as error:
                file.with_suffix(f".{number}").write_bytes(pickle.dumps(str(error)))
            finally:
                os._exit(0)
    for _ in range(workers):
        os.wait()
    found = [pickle.loads(file.with_suffix(f".{at}").read_bytes()) for at in range(workers)]  # noqa: S301
    _, _, leases, whole = pickle.loads(file.read_bytes())  # noqa: S301
    problems = sorted(one for one in found if isinstance(one, str))
    read = sorted(
        (one for some in found if not isinstance(some, str) for one in some),
        key=lambda one: one.row,
    )
    said = {
        "leases": len(leases),
        "rows": len(read),
        "are_the_same": read == whole,
        "problems": problems,
    }
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    for module in (rows, jsonl):
        module.OFFSETS_EVERY = 50  # type: ignore[attr-defined]
    command, first, second = sys.argv[1:]
    if command == "plan":
        _plan(first, Path(second))
    else:
        _read_all(Path(first), int(second))
