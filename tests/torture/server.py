"""A server that counts what it completed: the simulator, as a process of its own."""

import json
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import COMMAND
from tests.waiting import HANG_S

_ALIKE = 3  # looks in a row that must see the same
_LOOK_EVERY_S = 0.01
_ANSWERED = ("reset_within", "truncated_json")  # faults that destroy an answer that was made


@dataclass(frozen=True)
class Counts:
    """What a server has done so far."""

    requests: int = 0
    completions: int = 0  # answers made, which would be billed
    destroyed: int = 0  # of them, those that a fault kept from arriving; a kill is no fault
    faults: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    awaited: int = 0  # requests whose answer is still to be counted


class Server:
    """Listens from the start until `close`."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *options: str) -> None:
        command = [*COMMAND, "simulate", "--port", "0", *options]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        assert self.base_url, "the simulator did not start"

    def close(self) -> None:
        self._process.kill()
        self._process.wait(HANG_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def counts(self) -> Counts:
        stats = self._stats("")
        destroyed, faults = Counter(stats["destroyed_by"]), Counter(stats["faults"])
        let_in = stats["requests"] - sum(stats["refused"].values())
        let_in -= sum(stats["rejected"].values())
        unanswered = faults.total() - sum(faults[kind] for kind in _ANSWERED)
        return Counts(
            requests=stats["requests"],
            completions=stats["completions"],
            destroyed=destroyed.total() - destroyed["disconnect"],
            faults=faults.total(),
            in_flight=stats["in_flight"],
            most_in_flight=stats["most_in_flight"],
            awaited=let_in - unanswered - stats["completions"],
        )

    def at_rest(self) -> Counts:
        """The counts once every request, also of a client that is dead, has been counted.

        An answer whose client hung up is counted when it would have been ready.
        """
        end_s = time.monotonic() + HANG_S
        seen: list[Counts] = []
        while len(seen) < _ALIKE:
            counts = self.counts()
            if counts.awaited or counts.in_flight or (seen and counts != seen[-1]):
                seen = []
                assert time.monotonic() < end_s, f"the server never came to rest: {counts}"
            else:
                seen.append(counts)
            time.sleep(_LOOK_EVERY_S)
        return seen[-1]

    def requests_by_body(self) -> dict[str, int]:
        """How many requests came with each body, by the body's SHA-256."""
        return {key: counts["requests"] for key, counts in self._stats("?by=body").items()}

    def _stats(self, query: str) -> dict[str, Any]:
        address = f"{self.base_url.removesuffix('/v1')}/stats{query}"
        with self._opener.open(address, timeout=HANG_S) as answer:
            stats: dict[str, Any] = json.load(answer)
            return stats
