"""A run that was asked to stop before it sent anything."""

from pathlib import Path

import pytest

from batchrun.job.job_file import load_job
from batchrun.runner.ending import StopSwitch
from batchrun.runner.engine import Watch
from batchrun.runner.start import run_job


@pytest.mark.parametrize("times", [1, 2])
async def test_a_stop_between_plan_and_sending_is_no_end(tmp_path: Path, times: int) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"input": "one"}\n{"input": "two"}\n')
    settings = {"request.model": "m", "output.path": str(tmp_path / "run")}
    job = load_job(str(source), settings)
    stop = StopSwitch()

    def ask(*_: object) -> None:
        for _time in range(times):
            stop.ask("interrupted by Ctrl-C", 130)

    summary = await run_job(job, simulate=True, stop=stop, watch=Watch(plan=ask))
    assert (summary.exit_code, summary.state, summary.left) == (130, "interrupted", 2)
    assert (await run_job(job, simulate=True)).exit_code == 0
