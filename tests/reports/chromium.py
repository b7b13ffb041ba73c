"""A page looked at in headless Chromium over its debugging protocol."""

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
_QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update")
_DOMAINS = ("Page", "Network", "Log", "Runtime")


class Tab:
    """One tab, and what it said and asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == self._calls:
                assert "error" not in said, said
                found: dict[str, Any] = said["result"]
                return found
            self.events.append(said)

    async def open(self, page: Path, width: int, scheme: str, media: str = "screen") -> None:
        """The page, loaded, as wide as that."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", media=media, features=[feature])
        before = len(self.events)
        await self.call("Page.navigate", url=page.as_uri())
        while not any(one["method"] == "Page.loadEventFired" for one in self.events[before:]):
            await self.call("Runtime.evaluate", expression="0")

    async def evaluate(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def screenshot(self) -> bytes:
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    async def pdf(self) -> bytes:
        found = await self.call("Page.printToPDF", printBackground=True)
        return base64.b64decode(found["data"])

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the console."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [one for one in self.events if one["method"] in names]

    def requests(self) -> set[str]:
        """The addresses that were asked for."""
        asked = (one for one in self.events if one["method"] == "Network.requestWillBeSent")
        return {one["params"]["request"]["url"] for one in asked}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Tab]:
    """A browser with one tab, ended afterwards; `folder` takes what it writes."""
    assert PROGRAM is not None
    log = folder / "chromium.log"
    with log.open("w") as said:
        command = (PROGRAM, *_OPTIONS, *_QUIET, f"--user-data-dir={folder / 'profile'}")
        process = await asyncio.create_subprocess_exec(*command, "about:blank", stderr=said)
    try:
        while "DevTools listening on ws://" not in log.read_text():
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.02)
        address = log.read_text().partition("listening on ws://")[2].partition("/")[0]
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"http://{address}/json/new?about:blank") as made,
        ):
            where = (await made.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(where, max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in _DOMAINS:
                    await tab.call(f"{domain}.enable")
                yield tab
    finally:
        process.terminate()
        await process.wait()
