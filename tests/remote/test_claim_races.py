"""Two commands on two machines begin at the same time with one run in a store: one has it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Forked, ForkServer
from tests.remote.object_server import Bucket, Call, Proxy
from tests.remote.test_store_kills import check
from tests.waiting import HANG_S, wait_until

ROWS = 12


def end(process: Forked) -> None:
    process.close()
    for stream in filter(None, (process.stdout, process.stderr)):
        stream.close()


class Race:
    """One run, and two machines, each with a way of its own to the server."""

    def __init__(
        self,
        url: str,
        folder: Path,
        variables: dict[str, str],
        base_url: str,
        let_go: threading.Event,
        opened: ExitStack,
    ) -> None:
        folder.mkdir()
        self._folder, self._variables, self._opened = folder, variables, opened
        self.words = ["run", "../prompts.jsonl", "--prompt", "{{ question }}", "--model", "m"]
        self.words += ["--quiet", "-o", url, "--base-url"]
        self.ways = [opened.enter_context(closing(Proxy(base_url))) for _ in range(2)]
        for way in self.ways:
            way.rule = lambda _call: None if let_go.wait(HANG_S) else "fail"
        self.machines: list[Forked] = []

    def start(self, fork_server: ForkServer) -> None:
        for number, way in enumerate(self.ways):
            process = fork_server.start(
                self._folder, self._on(number), *self.words, f"{way.address}/v1"
            )
            self.machines.append(process)
            self._opened.callback(end, process)

    def run_again(self, fork_server: ForkServer) -> None:
        for number, way in enumerate(self.ways):
            done = fork_server.run(self._folder, self._on(number), *self.words, f"{way.address}/v1")
            assert done.returncode == 0, done.stderr

    def _on(self, number: int) -> dict[str, str]:
        return {**self._variables, "XDG_STATE_HOME": str(self._folder / f"state-{number}")}

    def has_loser(self) -> bool:
        return any(one.poll() is not None for one in self.machines)


def have_both(claims: set[str]) -> bool:
    return len(claims) >= 2


@pytest.fixture
def server(tmp_path: Path, environment: dict[str, str], fork_server: ForkServer) -> Iterator[str]:
    """The address of the one that all ask."""
    process = fork_server.start(tmp_path, environment, "simulate", "--port", 0)
    assert process.stdout is not None
    yield process.stdout.readline().strip().removesuffix("/v1")
    end(process)


@pytest.mark.parametrize(
    "races", [3, *(pytest.param(4, marks=pytest.mark.long, id=f"4-{n}") for n in range(5))]
)
def test_of_two_that_begin_together_one_runs_and_the_other_says_who(
    races: int,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    environment: dict[str, str],
    fork_server: ForkServer,
    server: str,
    questions: Callable[[int], str],
    tmp_path: Path,
) -> None:
    """In every other race both have their claims before either looks for others."""
    (tmp_path / "prompts.jsonl").write_text(questions(ROWS))
    let_go = threading.Event()
    claims: dict[str, set[str]] = {f"race-{number}": set() for number in range(races)}

    def rule(call: Call) -> None:
        where = next((one for one in claims if f"{one}/claims/" in call.path), None)
        if where is not None and call.method == "PUT":
            claims[where].add(call.path)
        is_look = call.method == "GET" and "list-type" in call.path and "claims" in call.path
        for one, found in claims.items():
            if is_look and one in call.path and one[-1] in "02468":
                wait_until(partial(have_both, found))

    proxy.rule = rule
    variables = {**environment, **s3, "AWS_ENDPOINT_URL": proxy.address}
    with ExitStack() as opened:
        opened.callback(let_go.set)
        all_of_them = [
            Race(
                f"{bucket.url}/{name}",
                tmp_path / name,
                variables,
                server,
                let_go,
                opened,
            )
            for name in claims
        ]
        for race in all_of_them:
            race.start(fork_server)
        for race in all_of_them:
            wait_until(race.has_loser)
        for race in all_of_them:
            lost = [one for one in race.machines if one.poll() is not None]
            assert len(lost) == 1
            _, said = lost[0].communicate(HANG_S)
            assert lost[0].returncode == 2, said
            (winner,) = (one for one in race.machines if one is not lost[0])
            assert f"in use by process {winner.pid} on {socket.gethostname()}" in said
            assert race.ways[race.machines.index(lost[0])].calls == []
        let_go.set()
        for race in all_of_them:
            (winner,) = (one for one in race.machines if one.returncode is None)
            _, said = winner.communicate(HANG_S)
            assert winner.returncode == 0, said
        for name, race in zip(claims, all_of_them, strict=True):
            race.run_again(fork_server)
            assert sum(len(way.calls) for way in race.ways) == ROWS
            check(bucket, tmp_path, ROWS, name)
