"""The library's face: the same runs without the command line."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

import batchrun
from batchrun.store.verify import verify
from tests.waiting import HANG_S


def _write(path: Path, count: int) -> None:
    rows = (f'{{"id": "q{number}", "question": "What is {number}?"}}\n' for number in range(count))
    path.write_text("".join(rows), encoding="utf-8")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    _write(path, 30)
    return path


def _job(prompts: Path) -> batchrun.Job:
    return batchrun.load_job(
        prompts,
        {
            "request.model": "gpt-4.1",
            "request.input": "{{ question }}",
            "output.path": str(prompts.parent / "run"),
        },
    )


def test_a_job_runs_from_code_without_an_event_loop(prompts: Path) -> None:
    summary = batchrun.run(_job(prompts), simulate=True)
    assert (summary.exit_code, summary.rows, summary.ok) == (0, 30, 30)
    tables = batchrun.open_run(summary.run)
    assert tables.responses.count_rows() == 30
    assert tables.tool_calls.count_rows() == 0
    assert "output_text" in tables.responses.schema.names


async def test_a_job_runs_within_a_running_event_loop_and_resumes(prompts: Path) -> None:
    first = await batchrun.run_async(_job(prompts), simulate=True, limit=10)
    assert (first.rows, first.ok, first.left, first.state) == (10, 10, 20, "limited")
    second = await batchrun.run_async(_job(prompts), simulate=True)
    assert (second.rows, second.ok, second.exit_code) == (30, 30, 0)


async def test_a_cancelled_run_leaves_a_directory_that_resumes(prompts: Path) -> None:
    job = _job(prompts)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await batchrun.run_async(job, simulate=True)
    record = prompts.parent / "run" / "run.json"
    if record.exists():  # it was broken off after its plan
        assert json.loads(record.read_bytes())["state"] in ("interrupted", "running")
    again = await batchrun.run_async(job, simulate=True)
    assert (again.ok, again.left) == (30, 0)


async def test_a_run_cancelled_while_it_sends_says_interrupted_and_is_whole(
    prompts: Path,
) -> None:
    _write(prompts, 2_000)
    job, some = _job(prompts), asyncio.Event()

    def look(summary: batchrun.Summary) -> None:
        if summary.settled:
            some.set()

    task = asyncio.create_task(batchrun.run_async(job, simulate=True, progress=look))
    await some.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    run = prompts.parent / "run"
    assert json.loads((run / "run.json").read_bytes())["state"] == "interrupted"
    assert verify(run).problems == []
    again = await batchrun.run_async(job, simulate=True)
    assert (again.ok, again.left, again.attempts) == (2_000, 0, 2_000)


def test_errors_derive_from_one_root(prompts: Path) -> None:
    with pytest.raises(batchrun.BatchrunError):
        batchrun.open_run(prompts.parent / "nowhere")
    with pytest.raises(batchrun.InputError):
        batchrun.run(batchrun.load_job("no-such-file.jsonl", {"request.model": "m"}), simulate=True)


def test_importing_the_package_and_asking_for_help_import_nothing_heavy() -> None:
    script = (
        "import sys, batchrun, batchrun.cli\n"
        "from click.testing import CliRunner\n"
        "from batchrun.cli.main import batchrun as group\n"
        "assert CliRunner().invoke(group, ['run', '--help']).exit_code == 0\n"
        "heavy = {'aiohttp', 'pyarrow', 'duckdb', 'rich', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HANG_S
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_without_a_filter_does_not_load_the_database(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say yes."}\n')
    script = (
        "import sys, batchrun\n"
        f"set = {{'request.model': 'm', 'output.path': {str(tmp_path / 'run')!r}}}\n"
        f"job = batchrun.load_job({str(rows)!r}, set)\n"
        "assert batchrun.run(job, simulate=True).ok == 1\n"
        "sys.exit('duckdb' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=HANG_S)
    assert done.returncode == 0


@pytest.mark.parametrize("chosen", [None, *pa.supported_memory_backends()])
def test_the_command_takes_arrows_memory_from_the_system_unless_told_otherwise(
    chosen: str | None,
) -> None:
    script = (
        "import sys\n"
        "from batchrun.cli.main import main\n"
        "sys.argv = ['batchrun', '--version']\n"
        "main()\n"
        "import pyarrow\n"
        "print(pyarrow.default_memory_pool().backend_name)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    if chosen is not None:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    assert done.stdout.splitlines()[-1] == (chosen or "system")


@pytest.mark.parametrize(("columns", "widest"), [("60", 58), ("", 78), ("300", 98)])
def test_help_is_as_wide_as_the_terminal_up_to_a_readable_width(columns: str, widest: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "batchrun", "run", "--help"],
        env=os.environ | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    lines = done.stdout.partition("Options:")[2].partition("Examples:")[0].splitlines()
    assert widest - 10 < max(map(len, lines)) <= widest


def _state() -> tuple[object, ...]:
    is_frozen = gc.get_freeze_count() > 0
    return gc.get_threshold(), gc.isenabled(), is_frozen, sys.getswitchinterval()


async def test_two_runs_at_once_leave_the_hosts_interpreter_as_it_was(tmp_path: Path) -> None:
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "prompts.jsonl"
        path.write_text('{"id": "q", "question": "What?"}\n')
        jobs.append(_job(path))
    gc.freeze()
    try:
        before, during = _state(), []

        def look(_: batchrun.Summary) -> None:
            during.append(_state())

        await asyncio.gather(
            *(batchrun.run_async(job, simulate=True, progress=look) for job in jobs)
        )
        assert during
        assert {*during, _state()} == {before}
    finally:
        gc.unfreeze()


def test_a_run_that_fails_leaves_the_hosts_interpreter_as_it_was(prompts: Path) -> None:
    before = _state()
    (prompts.parent / "run").write_text("a file, no directory")
    with pytest.raises(batchrun.JobError):
        batchrun.run(_job(prompts), simulate=True)
    assert _state() == before


def test_progress_is_told_to_the_end_and_what_it_raises_ends_no_run(prompts: Path) -> None:
    told: list[batchrun.Summary] = []
    summary = batchrun.run(_job(prompts), simulate=True, progress=told.append)
    assert told[-1] == summary
    assert {one.state for one in told} <= {"running", "finished"}
    assert all(one.settled + one.left == one.source_rows == 30 for one in told)

    def fail(_: batchrun.Summary) -> None:
        raise KeyError("mine")

    job = batchrun.load_job(
        prompts,
        {"request.model": "m", "request.input": "{{ question }}", "output.path": f"{prompts}-run"},
    )
    with pytest.warns(UserWarning, match="progress failed and is not called again.*mine"):
        assert batchrun.run(job, simulate=True, progress=fail).exit_code == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_is_stopped_from_another_thread_and_goes_on(prompts: Path, times: int) -> None:
    _write(prompts, 3_000)
    stop = batchrun.StopSwitch()

    def ask_once_some_are_there(summary: batchrun.Summary) -> None:
        if summary.settled and not stop.asked:
            for _ in range(times):
                thread = threading.Thread(target=stop.ask)
                thread.start()
                thread.join()

    job = _job(prompts)
    stopped = batchrun.run(job, simulate=True, progress=ask_once_some_are_there, stop=stop)
    assert (stopped.state, stopped.exit_code, stopped.message) == (
        "interrupted",
        130,
        "asked to stop",
    )
    assert 0 < stopped.left < 3_000
    ended = batchrun.run(job, simulate=True)
    assert (ended.state, ended.ok, ended.left) == ("finished", 3_000, 0)


def test_a_switch_that_was_asked_before_ends_the_plan(prompts: Path) -> None:
    stop = batchrun.StopSwitch()
    stop.ask("not now")
    with pytest.raises(batchrun.Interrupted, match="not now"):
        batchrun.run(_job(prompts), simulate=True, stop=stop)
    assert not (prompts.parent / "run").exists()
