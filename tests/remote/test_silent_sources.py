"""Sources in a store or on the Hub that fail, are silent, or give halves: said in time, or read.

What is said names the source and what to do, and holds no token.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_batchrun
from tests.remote.hub_server import SIGNATURE, Hub
from tests.remote.object_server import Bucket, Call, Proxy
from tests.remote.test_reading_sources import PROMPT, parquet_of, rows_of
from tests.waiting import HANG_S, wait_until

Command = Callable[..., subprocess.CompletedProcess[str]]
_PATIENCE = Path(__file__).parent / "patience.py"
_START_S = 30.0  # within which it is said that a source cannot be read
_ROWS = 400
FEW = "--concurrency", "8"  # so that some rows are answered before the last are read
_TOKEN = "hf_a_token_of_the_hub"  # noqa: S105 - of nobody
_SOURCE = "hf://datasets/somebody/questions/data"
_KEY = "a-secret-key-of-the-store"


@pytest.fixture
def impatient(environment: dict[str, str], tmp_path: Path) -> Command:
    """`batchrun ...` that waits a tenth as long."""

    def run(*words: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, _PATIENCE, "0.1")
        return run_batchrun(tmp_path, {**environment, **env}, *words, command=command)

    return run


@pytest.fixture
def source(bucket: Bucket, questions: Callable[..., str]) -> str:
    """A folder of a store with a file of each kind."""
    bucket.put("in/a.jsonl", questions(_ROWS))
    bucket.put("in/b.parquet", parquet_of(_ROWS, _ROWS))
    return f"{bucket.url}/in"


@pytest.fixture
def behind_proxy(s3: dict[str, str], proxy: Proxy) -> dict[str, str]:
    return {**s3, "AWS_SECRET_ACCESS_KEY": _KEY, "AWS_ENDPOINT_URL": proxy.address}


def _long(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


def _is_read(call: Call) -> bool:
    return call.method == "GET" and "list-type" not in call.path


def _is_asked(_call: Call) -> bool:
    return True


@pytest.mark.parametrize(
    ("fault", "which", "said"),
    [
        _long("silence", _is_asked, "check the network"),
        ("stall", _is_read, "check the network"),
        _long("cut", _is_read, "it cannot be reached; check the network"),
        ("fail", _is_read, "the store is overloaded or failing; wait"),
        _long("deny", _is_read, "the credentials are missing, refused or not allowed"),
    ],
)
def test_a_store_that_gives_nothing_is_said_at_the_start(
    fault: str,
    which: Callable[[Call], bool],
    said: str,
    source: str,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    impatient: Command,
    batchrun: Command,
) -> None:
    proxy.rule = lambda call: fault if which(call) else None
    run = impatient if fault in ("silence", "stall") else batchrun
    done = run("run", source, *PROMPT, env=behind_proxy)
    assert done.returncode == 2
    assert said in done.stderr
    assert source in done.stderr
    assert _KEY not in done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(("fault", "which"), [("silence", _is_asked), ("stall", _is_read)])
def test_a_store_that_is_silent_is_said_within_30_seconds(
    fault: str,
    which: Callable[[Call], bool],
    source: str,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    batchrun: Command,
) -> None:
    proxy.rule = lambda call: fault if which(call) else None
    begun_s = time.monotonic()
    done = batchrun("run", source, *PROMPT, env=behind_proxy)
    assert time.monotonic() - begun_s < _START_S
    assert done.returncode == 2
    assert source in done.stderr


@pytest.mark.parametrize("fault", ["cut", pytest.param("stall", marks=pytest.mark.long)])
def test_reads_that_stall_or_are_cut_in_a_run_are_made_again(
    fault: str,
    source: str,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
) -> None:
    """While the plan is made, and while rows are sent."""
    met: set[tuple[str, bool]] = set()

    def rule(call: Call) -> str | None:
        place = call.path, _is_sending(tmp_path)
        if not _is_read(call) or place in met:
            return None
        met.add(place)
        return fault

    proxy.rule = rule
    done = batchrun("run", source, *PROMPT, env=behind_proxy)
    assert done.returncode == 0, done.stderr
    assert len(met) == 4
    assert len(rows_of(tmp_path / "runs/in-simulated")) == 2 * _ROWS


def _is_sending(folder: Path) -> bool:
    return bool(list(folder.glob("runs/in-simulated/journal/*.log")))


@pytest.mark.parametrize("fault", ["deny", pytest.param("stall", marks=pytest.mark.long)])
def test_a_store_that_is_gone_in_a_run_stops_it_and_costs_no_answer(
    fault: str,
    source: str,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    impatient: Command,
    batchrun: Command,
    tmp_path: Path,
) -> None:
    run = tmp_path / "runs/in-simulated"

    def rule(call: Call) -> str | None:
        return fault if call.path.endswith("b.parquet") and _is_sending(tmp_path) else None

    proxy.rule = rule
    run_it = impatient if fault == "stall" else batchrun
    done = run_it("run", source, *PROMPT, *FEW, env=behind_proxy)
    assert done.returncode == 3, done.stderr
    assert f"{source}/b.parquet" in done.stderr
    assert "check" in done.stderr
    assert 0 < len(rows_of(run)) <= _ROWS
    proxy.rule = lambda _call: None
    done = batchrun("run", source, *PROMPT, env=behind_proxy)
    assert done.returncode == 0, done.stderr
    assert len({row["custom_id"] for row in rows_of(run)}) == len(rows_of(run)) == 2 * _ROWS


@pytest.mark.parametrize("late", ["b.parquet", pytest.param("b.jsonl", marks=pytest.mark.long)])
def test_ctrl_c_ends_a_run_that_waits_for_a_store(
    late: str,
    source: str,
    bucket: Bucket,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    environment: dict[str, str],
    questions: Callable[..., str],
    tmp_path: Path,
) -> None:
    if late == "b.jsonl":
        bucket.delete("in/b.parquet")
        bucket.put("in/b.jsonl", questions(_ROWS, _ROWS))
    stalled: list[Call] = []

    def rule(call: Call) -> str | None:
        if not (_is_read(call) and call.path.endswith(late) and _is_sending(tmp_path)):
            return None
        stalled.append(call)
        return "stall"

    proxy.rule = rule
    with subprocess.Popen(
        [sys.executable, _PATIENCE, "10", "run", source, *PROMPT, *FEW],
        cwd=tmp_path,
        env={**environment, **behind_proxy},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: stalled, process)
        begun_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, said
    assert time.monotonic() - begun_s < 60.0  # the store may be silent for 200 s
    assert 0 < len(rows_of(tmp_path / "runs/in-simulated")) <= _ROWS


# --- the Hub


@pytest.fixture
def with_token(hub: Hub, hub_environment: dict[str, str], questions: Any) -> dict[str, str]:
    pytest.importorskip("huggingface_hub")
    hub.commit({"data/a.jsonl": questions(_ROWS).encode()})
    return {**hub_environment, "HF_TOKEN": _TOKEN, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}


def _is_file(path: str) -> bool:
    return "/resolve/" in path


def _is_download(method: str, path: str) -> bool:
    return method == "GET" and _is_file(path)


@pytest.mark.parametrize(
    ("what", "where", "said"),
    [
        _long(401, "api", "log in with `hf auth login`, or set HF_TOKEN"),
        _long(403, "api", "you may not do this: ask for access on the page of the data set"),
        _long(500, "api", "the Hub is overloaded or failing: wait until it works again"),
        ("gated", "file", "its owner has not given you access; ask for it on its page"),
        _long(401, "file", "log in with `hf auth login`, or set HF_TOKEN"),
        _long(403, "file", "you may not do this: ask for access on the page of the data set"),
        _long(503, "file", "the Hub is overloaded or failing: wait until it works again"),
        (503, "download", "the Hub is overloaded or failing: wait until it works again"),
        ("short", "file", "bytes were downloaded, but the data set lists"),
    ],
)
def test_what_the_hub_refuses_is_said(
    what: int | str,
    where: str,
    said: str,
    hub: Hub,
    with_token: dict[str, str],
    batchrun: Command,
) -> None:
    def rule(method: str, path: str) -> int | str | None:
        of = {"api": not _is_file(path), "file": _is_file(path)}
        return what if of.get(where, _is_download(method, path)) else None

    hub.rule = rule
    done = batchrun("run", _SOURCE, *PROMPT, env=with_token)
    assert done.returncode == 2
    assert said in done.stderr
    assert f"{_SOURCE.removesuffix('/data')}" in done.stderr
    assert hub.tokens == {f"Bearer {_TOKEN}"}
    assert _TOKEN not in done.stdout + done.stderr


def test_what_the_hub_refuses_of_a_later_file_is_said(
    hub: Hub, with_token: dict[str, str], batchrun: Command, questions: Any
) -> None:
    """The library says of it that it is not in its cache."""
    rows = questions(1).encode()
    hub.commit({"data/a.jsonl": rows, "data/b.jsonl": rows})
    hub.rule = lambda _method, path: 403 if path.endswith("b.jsonl") else None
    done = batchrun("run", _SOURCE, *PROMPT, env=with_token)
    assert done.returncode == 2
    assert "data/b.jsonl: the request to the Hub failed (" in done.stderr
    assert "you may not do this: ask for access" in done.stderr


def test_what_the_hub_fails_once_is_asked_again(
    hub: Hub, with_token: dict[str, str], batchrun: Command, tmp_path: Path
) -> None:
    """And no signature of a URL is in what is said meanwhile."""
    of_api, of_file = list[int | str]([503, "cut"]), list[int | str](["cut", 502])

    def rule(method: str, path: str) -> int | str | None:
        if method == "HEAD":
            return "elsewhere"
        left = of_api if "/api/" in path else of_file
        return left.pop() if left else None

    hub.rule = rule
    done = batchrun("run", _SOURCE, *PROMPT, env=with_token)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "runs/data-simulated")) == _ROWS
    assert (of_api, of_file) == ([], [])
    assert [asked for asked in hub.asked if asked.startswith("GET /elsewhere/")]
    assert SIGNATURE not in done.stdout + done.stderr


def test_a_signature_of_a_url_is_in_no_message(
    hub: Hub, with_token: dict[str, str], batchrun: Command
) -> None:
    def rule(_method: str, path: str) -> int | str | None:
        if path.startswith("/elsewhere/"):
            return 403
        return "elsewhere" if _is_file(path) else None

    hub.rule = rule
    done = batchrun("run", _SOURCE, *PROMPT, env=with_token)
    assert done.returncode == 2
    assert "the request to the Hub failed (" in done.stderr
    assert SIGNATURE not in done.stdout + done.stderr


@pytest.mark.long
def test_a_token_that_cannot_be_sent_is_in_no_message(
    with_token: dict[str, str], batchrun: Command
) -> None:
    token = f"{_TOKEN}é{_KEY}"
    done = batchrun("run", _SOURCE, *PROMPT, env={**with_token, "HF_TOKEN": token})
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr
    assert _TOKEN not in done.stderr
    assert _KEY not in done.stderr


@pytest.mark.parametrize(
    ("where", "limit_s"),
    [
        ("api", _START_S),
        pytest.param("file", _START_S, marks=pytest.mark.long),
        pytest.param("download", 0.0, marks=pytest.mark.long),
    ],
)
def test_a_silent_hub_is_said(
    where: str,
    limit_s: float,
    hub: Hub,
    with_token: dict[str, str],
    impatient: Command,
    batchrun: Command,
) -> None:
    """At the start within 30 s; an impatient one waits for a tenth of that."""

    def rule(method: str, path: str) -> int | str | None:
        if where == "download":
            return "stall" if _is_download(method, path) else None
        return "silence" if where == "api" or _is_file(path) else None

    hub.rule = rule
    run = impatient if where == "api" else batchrun
    begun_s = time.monotonic()
    done = run("run", _SOURCE, *PROMPT, env=with_token)
    assert not limit_s or time.monotonic() - begun_s < limit_s
    assert done.returncode == 2
    assert "check the network" in done.stderr
    assert _TOKEN not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["store", "hub"])
def test_a_source_that_drips_is_given_up(
    kind: str,
    hub: Hub,
    with_token: dict[str, str],
    source: str,
    proxy: Proxy,
    behind_proxy: dict[str, str],
    impatient: Command,
) -> None:
    """For the libraries it is not silent."""
    hub.rule = lambda method, path: "drip" if _is_download(method, path) else None
    proxy.rule = lambda call: "drip" if _is_read(call) else None
    asked = _SOURCE if kind == "hub" else source
    done = impatient("run", asked, *PROMPT, env={**with_token, **behind_proxy})
    assert done.returncode == 2
    assert "check the network" in done.stderr
