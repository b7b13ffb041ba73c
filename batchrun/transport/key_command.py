"""A key that a command says, asked for again where it is refused or old, while a run goes on."""

import asyncio
import math
import re

from yarl import URL

from batchrun.errors import JobError, RunStopped, StopCause
from batchrun.job.credentials import key_of_command
from batchrun.records import Reply
from batchrun.transport.exchange import Wire, exchange

_AGAIN_S = 10.0  # before a command is asked once more that said the key which is refused
_OLD_S = 30.0  # before a command is asked once more that failed for a key which is only old
_LOOKED_AT = 4096  # bytes of an error
_EXPIRED = re.compile(rb"(?i)expired|invalid[ _-]?(?:api[ _-]?)?key|unauthenticated")


class KeyCommand:
    """Sends with the key that a command says."""

    def __init__(self, wire: Wire, command: str, key: str | None) -> None:
        """`key`: what the command said first, some moments ago."""
        self._wire, self._command, self._key = wire, command, key
        self._ttl_s = wire.settings.api_key_ttl_s or math.inf
        self._now_s = asyncio.get_running_loop().time
        self._until_s = self._now_s() + self._ttl_s
        self._serial = 0  # of the key in use
        self._in_vain_s = -math.inf  # when the command last said the key that is refused
        self._asking = asyncio.Lock()  # many rows are refused at once, and one asks

    async def ask(self, method: str, url: URL, body: bytes | None, client_request_id: str) -> Reply:
        """One exchange, and a second one with another key where the first key is refused.

        Raises `EndpointError`, and `RunStopped` where the command says no key.
        """
        if self._now_s() >= self._until_s and not self._asking.locked():
            await self._renew_old()
        serial = self._serial
        reply = await exchange(self._wire, method, url, body, client_request_id)
        if _refuses_key(reply) and await self._renew_refused(serial):
            reply = await exchange(self._wire, method, url, body, client_request_id)
        return reply

    async def _renew_old(self) -> None:
        """The key may still do where the command fails: its refusal would say so."""
        async with self._asking:
            try:
                self._use(await asyncio.to_thread(key_of_command, self._command))
            except JobError:
                self._until_s = self._now_s() + min(self._ttl_s, _OLD_S)

    async def _renew_refused(self, serial: int) -> bool:
        """Whether there is another key than the one of that number. Raises `RunStopped`."""
        async with self._asking:
            if self._serial != serial:
                return True
            if self._now_s() - self._in_vain_s < _AGAIN_S:
                return False
            try:
                key = await asyncio.to_thread(key_of_command, self._command)
            except JobError as error:
                raise RunStopped(f"the key is refused, and {error}", StopCause.KEY) from error
            if key == self._key:
                self._in_vain_s = self._now_s()
                return False
            self._use(key)
            return True

    def _use(self, key: str) -> None:
        self._until_s = self._now_s() + self._ttl_s
        if key != self._key:
            self._key = key
            self._serial += 1
            self._wire.redactor.add(key)
            self._wire.connections.set_header("Authorization", f"Bearer {key}")


def _refuses_key(reply: Reply) -> bool:
    """A 401, or a 400 or 403 that says so in words."""
    if reply.http_status == 401:
        return True
    return reply.http_status in (400, 403) and bool(_EXPIRED.search(reply.body[:_LOOKED_AT]))
