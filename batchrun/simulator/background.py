"""Background responses: what was begun, and how it stands at a time."""

import asyncio
from dataclasses import dataclass
from typing import Any

from batchrun.simulator.delivery import Delivery
from batchrun.simulator.replies import Answer
from batchrun.simulator.standing import unfinished

Item = dict[str, Any]
_MOST = 200_000  # works remembered; the oldest are forgotten first
_QUEUED = 0.2  # of the time that the work takes


@dataclass(slots=True)
class Work:
    """One background response. Times are those of the event loop."""

    key: bytes
    answer: Answer
    delivery: Delivery
    begun_s: float
    due_s: float
    timer: asyncio.TimerHandle
    polls: int = 0
    is_cancelled: bool = False


class Works:
    """All that were begun, by id."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}

    def begin(
        self, key: bytes, answer: Answer, delivery: Delivery, latency_s: float, lost_by: str | None
    ) -> Item:
        """The response as created; its work ends by itself when it is due.

        `lost_by` is what keeps its id from the client.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        timer = loop.call_at(now_s + latency_s, delivery.finish, lost_by)
        work = Work(key, answer, delivery, now_s, now_s + latency_s, timer)
        self._works[answer.response["id"]] = work
        if len(self._works) > _MOST:
            del self._works[next(iter(self._works))]
        return unfinished(answer.response, "queued")

    def find(self, id_: str) -> Work | None:
        return self._works.get(id_)

    def cancel(self, work: Work, now_s: float) -> bool:
        """Whether it was still to be done; what is done stays so."""
        if work.is_cancelled or now_s >= work.due_s:
            return False
        work.is_cancelled = True
        work.timer.cancel()
        work.delivery.drop()
        return True


def stand(work: Work, now_s: float) -> Item:
    """The response as it stands: queued, in progress, cancelled, or done."""
    response = work.answer.response
    if work.is_cancelled:
        return unfinished(response, "cancelled")
    if now_s >= work.due_s:
        work.delivery.finish()  # timers may be late by a moment; what is told as done is counted
        return response
    queued_until_s = work.begun_s + (work.due_s - work.begun_s) * _QUEUED
    return unfinished(response, "queued" if now_s < queued_until_s else "in_progress")
