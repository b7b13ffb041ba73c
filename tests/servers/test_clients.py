"""Clients that nobody here wrote, each with 30 requests in each mode to `batchrun simulate`."""

import json
import urllib.request
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.servers

_REQUESTS = 30
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_MODES = {
    "openai_python.py": "plain stream background resumed parse tools stored",
    "openai_node.mjs": "plain stream background resumed parse tools stored",
    "openai_agents.py": "plain stream typed tools stored",
}


@pytest.mark.parametrize("program", _MODES)
def test_a_client_gets_what_it_needs_in_each_mode(
    program: str, simulator: str, client: Callable[[str, str, int], dict[str, int]]
) -> None:
    assert client(program, simulator, _REQUESTS) == dict.fromkeys(
        _MODES[program].split(), _REQUESTS
    )
    with _DIRECT.open(simulator.removesuffix("/v1") + "/stats", timeout=20) as answer:
        counts = json.load(answer)
    # what was left in the middle goes on in background: no answer is lost
    assert (counts["destroyed"], counts["in_flight"]) == (0, 0)
    is_sdk = "agents" not in program
    assert counts["background"]["created"] == (2 * _REQUESTS if is_sdk else 0)
    # the only refusals are those that the client asks for
    assert counts["rejected"] == ({"400": _REQUESTS} if is_sdk else {})
