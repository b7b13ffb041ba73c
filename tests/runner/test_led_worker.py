"""What the driver knows of one worker, and how long it waits for it."""

import asyncio
from typing import Any

import pytest

from batchrun.errors import InputError, JobError
from batchrun.executors.messages import UNREACHED
from batchrun.executors.worker_process import WorkerFailed
from batchrun.remote.object_stores import RemoteError
from batchrun.runner.cluster.led_worker import Led, cause_of
from batchrun.runner.cluster.worker import _as_stop


class _Process:
    """A worker's process that begins after so many seconds, with this problem."""

    def __init__(self, takes_s: float, problem: str | None = None) -> None:
        self._takes_s, self._problem = takes_s, problem

    async def begin(self, *_: object) -> str | None:
        await asyncio.sleep(self._takes_s)
        if self._problem == "raises":
            raise WorkerFailed("too late", is_over=True)
        return self._problem


@pytest.mark.parametrize(
    ("takes_s", "problem", "said"),
    [
        (0.0, None, None),
        (0.0, "no such folder", "no such folder"),
        (0.0, "raises", "too late"),
        (60.0, None, "it did not begin within 0.1 s"),
        (0.15, "raises", "it did not begin within 0.1 s"),
    ],
)
async def test_a_worker_that_does_not_begin_in_time_counts_as_lost(
    takes_s: float, problem: str | None, said: str | None
) -> None:
    led: Any = Led(0.0)
    led.process = _Process(takes_s, problem)
    if said is None:
        await led.begin(None, {}, 0.1)
        return
    with pytest.raises(WorkerFailed, match=said) as raised:
        await led.begin(None, {}, 0.1)
    assert raised.value.is_over == (takes_s == 0.0)
    await asyncio.sleep(0.1)  # what comes too late is nobody's error


@pytest.mark.parametrize(
    ("because", "kind"),
    [
        (RemoteError("refused"), UNREACHED),  # perhaps on its machine alone
        (JobError("no such profile"), UNREACHED),
        (None, "InputError"),  # the input has changed
    ],
)
def test_an_input_that_a_worker_cannot_reach_is_told_from_one_that_has_changed(
    because: Exception | None, kind: str
) -> None:
    error = InputError("s3://bucket/rows.jsonl: it is so")
    error.__cause__ = because
    stop = _as_stop(error)
    assert (stop.kind, stop.message) == (kind, str(error))
    assert isinstance(cause_of(Led(0.0), stop), InputError)
