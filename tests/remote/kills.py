"""Runs batchrun before a store behind a proxy, and kills it at one of its writes."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from batchrun.remote.claims import RENEW_S
from tests.processes import COMMAND
from tests.remote.object_server import Call, Proxy
from tests.waiting import HANG_S


class Killer:
    """Kills a command before or after its write number N of those that count."""

    def __init__(self, proxy: Proxy, variables: Mapping[str, str], folder: Path) -> None:
        """`variables`: in which batchrun finds the store through the proxy."""
        self._proxy, self._variables, self._folder = proxy, variables, folder
        self.writes: list[Call] = []  # of the last command
        self.took_s = 0.0

    def __call__(self, number: int, moment: str, *words: str, counts: str = "") -> bool:
        """Whether it came to that write."""
        writes = self.writes = []
        process: list[subprocess.Popen[str]] = []

        def strike(when: str, call: Call) -> None:
            if call.method in ("PUT", "POST", "DELETE") and counts in call.path:
                if when == "before":
                    writes.append(call)
                if len(writes) == number and moment == when and writes[-1] == call:
                    with suppress(ProcessLookupError):
                        os.kill(process[0].pid, signal.SIGKILL)

        def rule(call: Call) -> str | None:
            strike("before", call)
            if moment == "before" and len(writes) >= number:
                return "silence" if call in writes else "fail"
            return None

        self._proxy.rule, self._proxy.after = rule, lambda call: strike("after", call)
        process.append(
            subprocess.Popen(
                [*COMMAND, *words],
                cwd=self._folder,
                env=dict(self._variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        began_s = time.monotonic()
        _, said = process[0].communicate(timeout=HANG_S)
        self.took_s = time.monotonic() - began_s
        self._proxy.rule, self._proxy.after = lambda _call: None, lambda _call: None
        assert process[0].returncode in (0, -9), said
        return process[0].returncode == -9

    def has_writes(self, number: int) -> bool:
        """Whether the last command had so many; where it took its time, it renewed its claim."""
        found = len(self.writes)
        return found == number if self.took_s < RENEW_S else found >= number
