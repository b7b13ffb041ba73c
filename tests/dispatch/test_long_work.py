"""Background work that takes longer than the run's patience: what is accepted is no outage."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from msgspec.structs import replace
from yarl import URL

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate
from batchrun.job.sections import RetryJob
from batchrun.limits.concurrency import InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.records import Reply, Request
from batchrun.transport.background import BackgroundMode
from tests.pacing import virtual_loop

REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
WORKS_S = 2400.0
ANSWERED = 5  # create calls that are answered at once


class Server:
    """Begins work that takes 40 minutes, unless `refuses` says another status."""

    base_url, via = "http://127.0.0.1/v1", "background"

    def __init__(self, refuses: Callable[[int, float], int | None]) -> None:
        """`refuses`: by the number of the create call, and the time since the first."""
        self._refuses = refuses
        self._mode = BackgroundMode(self._ask, URL(self.base_url), None)
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._ends_s: dict[str, float] = {}
        self.created = 0

    def send(
        self, request: Request, number: str, left_s: float, accepted: Callable[[], None], /
    ) -> Awaitable[Reply]:
        return self._mode.send(request, number, left_s, accepted)

    async def _ask(self, method: str, url: URL, _body: bytes | None, _id: str) -> Reply:
        await asyncio.sleep(0.05)
        now_s = self._loop.time()
        if method == "GET":
            name = url.name
        else:
            self.created += 1
            refused = self._refuses(self.created, now_s - self._began_s)
            if refused is not None:
                return _reply(refused, {"error": {"message": "not now", "type": "x"}})
            name = f"resp_{self.created}"
            self._ends_s[name] = now_s + (WORKS_S if self.created > ANSWERED else 0.0)
        is_done = now_s >= self._ends_s[name]
        text = [{"type": "message", "content": [{"type": "output_text", "text": "an answer"}]}]
        return _reply(
            200,
            {
                "id": name,
                "object": "response",
                "status": "completed" if is_done else "in_progress",
                "output": text if is_done else [],
                "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
            },
        )


def _reply(status: int, body: object) -> Reply:
    return Reply(status, json.dumps(body).encode(), None, None, None)


async def _run(refuses: Callable[[int, float], int | None], rows: int, most: int) -> Server:
    """All rows are answered, and none was begun twice."""
    server = Server(refuses)
    scopes = Scopes(most, Patience(1800.0, 60.0))
    gate = Gate([InFlight(most)], scopes.limits)
    dispatcher = Dispatcher(server, gate, scopes, RetryJob(), Prices({}), key_name="KEY")

    async def complete(row: int) -> bool:
        completed = await dispatcher.complete(replace(REQUEST, row=row))
        assert completed.slot is not None
        gate.leave(completed.slot, completed.finish)
        return completed.outcome.ok

    assert all(await asyncio.gather(*map(complete, range(rows))))
    assert len(server._ends_s) == rows
    return server


def test_an_outage_is_over_when_work_is_accepted_though_it_takes_longer_than_the_patience() -> None:
    def refuses(created: int, now_s: float) -> int | None:
        return 500 if created > ANSWERED + 5 and now_s < 120.0 else None

    server = virtual_loop.run(_run(refuses, 120, 128))
    assert server.created < 120 + 200


def test_a_refusal_while_others_are_worked_on_is_no_refusal_of_every_request() -> None:
    """The one that is refused while twenty are in work waits for them: as many as it takes."""

    def refuses(created: int, now_s: float) -> int | None:
        return 429 if created >= 25 and now_s < WORKS_S else None

    server = virtual_loop.run(_run(refuses, 40, 30))
    assert server.created < 40 + 200
