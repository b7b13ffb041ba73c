"""aiohttp's inner parts are tried at start; where they differ, its public session is used."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from batchrun.job.job_file import load_job
from batchrun.runner.engine import Watch
from batchrun.runner.start import run_job
from batchrun.transport.fallback import SessionConnections, choose_connections
from tests.transport.raw_server import OK, says, send, serving

Change = Callable[[pytest.MonkeyPatch], None]


def _without(owner: type, name: str) -> Change:
    return lambda patch: patch.delattr(owner, name)


def _with(owner: Any, name: str, value: Any) -> Change:
    return lambda patch: patch.setattr(owner, name, value, raising=False)


def _without_module(patch: pytest.MonkeyPatch) -> None:
    for name in ("answer_reader", "connections"):
        patch.delitem(sys.modules, f"batchrun.transport.{name}", raising=False)
    patch.setitem(sys.modules, "aiohttp.client_proto", None)


async def _connect(_self: object, _request: object) -> None:
    """As it may be one day."""


class _OtherRequest(aiohttp.ClientRequest):
    def __init__(self, method: str, url: object, *, headers: object) -> None: ...


class _OtherPool(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self._factory


def _drops_what_is_early(_self: ResponseHandler, _data: bytes) -> None:
    """Unlike aiohttp's, which keeps it for the parser."""


_CHANGES: dict[str, Change] = {
    "a method is gone": _without(ResponseHandler, "is_connected"),
    "a module is gone": _without_module,
    "the pool's method takes something else": _with(aiohttp.TCPConnector, "connect", _connect),
    "requests are made in another way": _with(aiohttp, "ClientRequest", _OtherRequest),
    "the pool makes protocols in another way": _with(aiohttp, "TCPConnector", _OtherPool),
    "aiohttp has a method of our name": _with(ResponseHandler, "read_piece", None),
    "aiohttp has an attribute of our name": _with(ResponseHandler, "_pieces", ()),
    "early bytes are dropped": _with(ResponseHandler, "data_received", _drops_what_is_early),
    "the constructor differs": _with(ResponseHandler, "__init__", lambda _self: None),
}


@pytest.mark.parametrize("change", _CHANGES)
async def test_a_changed_aiohttp_is_noticed_and_its_session_is_used(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _CHANGES[change](patch)
        connect, warning = await choose_connections()
    assert connect is SessionConnections
    assert warning is not None
    assert warning.startswith(f"aiohttp {aiohttp.__version__} differs from the versions that")
    assert "requests go through aiohttp's own session" in warning


@pytest.fixture
def changed_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    _CHANGES["aiohttp has a method of our name"](monkeypatch)


@pytest.mark.usefixtures("changed_aiohttp")
async def test_a_changed_aiohttp_answers_requests() -> None:
    async with serving(says(OK + b"Content-Length: 2\r\n\r\n{}")) as base_url:
        assert (await send(base_url)).body == b"{}"


@pytest.mark.skipif(
    not aiohttp.__version__.startswith(tuple(f"3.{minor}." for minor in range(10, 15))),
    reason="not tried with this version yet",
)
async def test_versions_that_are_known_have_the_fast_transport() -> None:
    connect, warning = await choose_connections()
    assert (connect.__name__, warning) == ("Connections", None)


@pytest.mark.usefixtures("changed_aiohttp")
def test_a_run_says_once_that_it_uses_the_fallback(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"model":"m","input":"x"}\n' * 3)
    job = load_job(str(tmp_path / "in.jsonl"), {"output.path": str(tmp_path / "run")})
    warnings: list[str] = []
    watch = Watch(plan=lambda plan, _path: warnings.extend(plan.warnings))
    for rows in (3, 0):  # a run that has nothing to send says nothing
        warnings.clear()
        summary = asyncio.run(run_job(job, simulate=True, watch=watch))
        assert (summary.exit_code, summary.ok) == (0, 3)
        assert len([said for said in warnings if "aiohttp" in said]) == (1 if rows else 0)
