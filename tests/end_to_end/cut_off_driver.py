"""batchrun whose words to some workers are kept, as a network that is cut keeps them.

`cut_off_driver.py run ...`. While there is a file `cut/PID`, nothing comes to the worker that is
that process, and nothing from it; what was on its way arrives once the file is gone. What would
kill it is lost. With a file `hang`, the first worker never begins, and is waited for as many
seconds as the file says.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from batchrun.cli.main import main
from batchrun.executors import ray
from batchrun.executors.worker_process import Greeting, MakeWorker
from batchrun.runner.cluster.led_worker import Led

_LOOK_S = 0.02
_hanging = [float(path.read_text()) for path in Path().glob("hang")]


class _Actor(ray.RayActor):
    """A worker's process behind a cable that can be pulled out."""

    _pid: int | None = None

    async def greet(self, path: str, token: str, access: Mapping[str, str | None]) -> Greeting:
        said = await super().greet(path, token, access)
        self._pid = said.pid
        return said

    async def begin(self, make: MakeWorker, settings: object, secrets: object) -> str | None:
        if _hanging:
            _hanging.clear()
            await asyncio.Event().wait()
        return await super().begin(make, settings, secrets)

    async def tick(self, message: bytes) -> bytes:
        await self._connected()
        try:
            return await super().tick(message)
        finally:
            await self._connected()

    def kill(self) -> None:
        if not self._is_cut:
            super().kill()

    @property
    def _is_cut(self) -> bool:
        return Path("cut", str(self._pid)).exists()

    async def _connected(self) -> None:
        while self._is_cut:
            await asyncio.sleep(_LOOK_S)


if _hanging:
    vars(Led)["begin"].__defaults__ = tuple(_hanging)
vars(ray)["RayActor"] = _Actor  # what a cluster starts
main()
