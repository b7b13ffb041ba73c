"""Servers and clients that nobody here wrote, on loopback.

`make test-servers` puts them into `.servers/`: the litellm proxy, aimock and vLLM for the real
command line, and clients for the simulator. Servers start once for all tests, in process groups
of their own that have a time limit and are killed at the end. The key is made up when the tests
start, and goes from process to process through the environment alone.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table

MODES = ("plain", "stream", "background")
ROWS = 50

_HERE = Path(__file__).parent
_INSTALLED = _HERE.parents[1] / ".servers"
_KEY = "SERVERS_KEY"  # the variable that holds the key
_OURS = ("OPENAI_", "LITELLM_", "AIMOCK_", "FORCE_COLOR", "NO_COLOR", "TTY_", "COLUMNS", "LINES")
_SERVER_LIMIT_S = 1800  # for a server, should the tests themselves be killed
_START_LIMIT_S = 100.0
_VLLM_START_LIMIT_S = 400.0  # it loads for half a minute on a free machine
_COMMAND_LIMIT_S = 240.0
_LOOK_EVERY_S = 0.1
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# What aimock does to the first try of a row; the next one is answered.
_FAULTS: dict[str, dict[str, Any]] = {
    "drop": {"chaos": {"dropRate": 1}},  # 500 with a code of its own
    "malformed": {"chaos": {"malformedRate": 1}},  # 200 and no JSON, in stream mode too
    "disconnect": {"chaos": {"disconnectRate": 1}},  # the connection ends before a status
    "rate_limit": {"chaos": {"rateLimitRate": 1}},  # 429 with Retry-After: 1
    "slow": {"chaos": {"latencyMs": 300}},
    "hint": {
        "response": {
            "error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"},
            "status": 429,
            "retryAfter": 2,
        }
    },
    "overloaded": {
        "response": {
            "error": {"message": "Too much to do.", "type": "service_unavailable_error"},
            "status": 503,
        }
    },
    "cut": {"truncateAfterChunks": 6, "latency": 20},  # amid the deltas; streams alone
}


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Ours, with a key, and without what would change what batchrun or a server does."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OURS) and not name.lower().endswith("_proxy")
    }
    return {**ours, _KEY: f"sk-{secrets.token_hex(16)}"}


@pytest.fixture(scope="session")
def aimock_url(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where aimock listens; it knows no answer until a test teaches it some."""
    program = _installed("aimock/node_modules/@copilotkit/aimock/dist/cli.js")
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "none.json").write_text('{"fixtures": []}')
    port = _free_port()
    words = ["node", program, "--host", "127.0.0.1", "--port", port, "--fixtures", "none.json"]
    settings = {**environment, "AIMOCK_API_KEYS": environment[_KEY]}
    with _server([*words, "--log-level", "warn"], settings, folder, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def aimock_control(aimock_url: str, environment: dict[str, str]) -> Callable[..., Any]:
    """`control(method, path, body)`: what a test asks of aimock itself."""
    headers = {"Authorization": f"Bearer {environment[_KEY]}", "Content-Type": "application/json"}

    def control(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"{aimock_url}/__aimock/{path}"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - loopback
        with _DIRECT.open(request, timeout=_START_LIMIT_S) as answer:
            return json.load(answer)

    return control


@pytest.fixture
def aimock(
    aimock_url: str, aimock_control: Callable[..., Any]
) -> Callable[[Iterable[dict[str, Any]]], str]:
    """Makes aimock forget what was, and teaches it answers (its fixtures); its base URL."""

    def teach(fixtures: Iterable[dict[str, Any]]) -> str:
        aimock_control("POST", "reset")
        aimock_control("POST", "fixtures", {"fixtures": list(fixtures)})
        return f"{aimock_url}/v1"

    return teach


@pytest.fixture(scope="session")
def litellm(
    aimock_url: str, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The base URL of a litellm proxy.

    It answers for `mocked` by itself, and passes on to aimock what is meant for `behind` or for
    `limited-MODE`, which have 30 requests a minute each.
    """
    program = _installed("litellm/bin/litellm")
    folder = tmp_path_factory.mktemp("litellm")
    passed_on = {"api_base": f"{aimock_url}/v1", "api_key": f"os.environ/{_KEY}"}
    models: dict[str, dict[str, Any]] = {
        "mocked": {"mock_response": "A mocked answer.", "api_key": "none"},
        "behind": passed_on,
        **{f"limited-{mode}": {**passed_on, "rpm": 30} for mode in MODES},
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **settings}}
            for name, settings in models.items()
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "optional_pre_call_checks": ["enforce_model_rate_limits"],
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    settings = {
        **environment,
        "LITELLM_MASTER_KEY": environment[_KEY],
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # Whatever does not go to loopback ends at a port where nobody listens.
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    port = _free_port()
    words = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", port]
    with _server([*words, "--telemetry", "False"], settings, folder, port):
        yield f"http://127.0.0.1:{port}/v1"


class Vllm:
    """vLLM with a tiny model of random weights, `tiny`; it can be killed and started again."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self._environment = {
            **environment,
            "HF_HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "2",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_RESPONSES_API_STORE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_API_KEY": environment[_KEY],
        }
        self._running = ExitStack()
        self.base_url = f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        port = self._port
        words = [_INSTALLED / "vllm/bin/vllm", "serve", _INSTALLED / "vllm/tiny"]
        words += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port]
        words += ["--max-model-len", "2048", "--dtype", "float32", "--enforce-eager"]
        self._running.enter_context(
            _server(words, self._environment, self._folder, port, _VLLM_START_LIMIT_S)
        )

    def kill(self) -> None:
        self._running.close()


@pytest.fixture(scope="session")
def vllm(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A vLLM that listens; skipped where it could not be installed."""
    if not (_INSTALLED / "vllm/installed").exists():
        pytest.skip("vLLM is not in .servers/vllm: make test-servers could not install it here")
    server = Vllm(environment, tmp_path_factory.mktemp("vllm"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def simulator(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The base URL of `batchrun simulate`."""
    port = _free_port()
    with _server(
        [sys.executable, "-m", "batchrun", "simulate", "--port", port], environment, tmp_path, port
    ):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def client(environment: dict[str, str]) -> Callable[..., dict[str, int]]:
    """`client(program, base_url, requests)`: runs a program of `clients/`; what it did, counted."""

    def run(program: str, base_url: str, requests: int) -> dict[str, int]:
        words: list[object] = [_HERE / "clients" / program, base_url, requests]
        if program.endswith(".mjs"):
            words = ["node", words[0], _installed("node_client"), *words[1:]]
        else:
            words = [_installed("clients/bin/python"), *words]
        done = subprocess.run(
            [*map(str, words)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        counts: dict[str, int] = json.loads(done.stdout)
        return counts

    return run


@pytest.fixture
def cutting(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Puts our own proxy, which cuts connections, before a base URL; the base URL to use then."""
    with ExitStack() as running:

        def put_before(base_url: str) -> str:
            port = _free_port()
            upstream = base_url.removeprefix("http://127.0.0.1:").removesuffix("/v1")
            words = [sys.executable, _HERE / "cutting_proxy.py", port, upstream]
            running.enter_context(_server(words, environment, tmp_path, port))
            return f"http://127.0.0.1:{port}/v1"

        yield put_before


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """A test that asks for it runs once in each mode."""
    return str(request.param)


@pytest.fixture(scope="session")
def answer_of() -> Callable[[int], str]:
    """What aimock answers to a row in the end."""

    def text(row: int) -> str:
        return f"This is the answer of row {row}, and it takes several pieces of a stream."

    return text


@pytest.fixture(scope="session")
def fixtures(answer_of: Callable[[int], str]) -> Callable[[Sequence[str]], list[dict[str, Any]]]:
    """Answers for aimock, to the rows in their order, the first try with the fault named."""

    def make(faults: Sequence[str]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for row, fault in enumerate(faults):
            match = {"userMessage": f"Row {row} asks"}
            usage = {"input_tokens": 10 + row, "output_tokens": 20 + row}
            whole = {"match": match, "response": {"content": answer_of(row), "usage": usage}}
            if fault:
                first = {"match": {**match, "sequenceIndex": 0}, **_FAULTS[fault]}
                made.append({**whole, **first})
            made.append(whole)
        return made

    return make


@pytest.fixture
def begin(
    tmp_path: Path, environment: dict[str, str]
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begins 50 rows with the real command line, into the run directory `MODE`."""
    rows = ({"id": f"r{row}", "question": f"Row {row} asks."} for row in range(ROWS))
    lines = (json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    begun: list[subprocess.Popen[str]] = []

    def start(
        base_url: str, mode: str, *options: str, model: str = "gpt-4.1", key: str | None = None
    ) -> subprocess.Popen[str]:
        words = ["run", "rows.jsonl", "--prompt", "{{ question }}", "--model", model]
        where = ["--base-url", base_url, "--api-key-env", _KEY, "--mode", mode, "-o", mode]
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "batchrun", *words, *where, *options],
                cwd=tmp_path,
                env=environment if key is None else {**environment, _KEY: key},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def batchrun(
    begin: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same to its end."""

    def run(
        base_url: str, mode: str, *options: str, model: str = "gpt-4.1", key: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return _ended(begin(base_url, mode, *options, model=model, key=key))

    return run


@pytest.fixture
def ended() -> Callable[[subprocess.Popen[str]], subprocess.CompletedProcess[str]]:
    """Waits until a run that was begun has ended."""
    return _ended


@pytest.fixture
def wait_for(tmp_path: Path) -> Callable[[str, str, int], None]:
    """`wait_for(run, name, least)`: until the live summary of a run counts so many."""

    def wait(run: str, name: str, least: int) -> None:
        end_s = time.monotonic() + _COMMAND_LIMIT_S
        live = tmp_path / run / "live.json"
        while not live.exists() or json.loads(live.read_text())[name] < least:
            assert time.monotonic() < end_s, f"{name} never came to {least}"
            time.sleep(_LOOK_EVERY_S)

    return wait


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The rows of a table of a run, in the order of the input."""

    def read(run: str, name: str = "responses") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = read_table(tmp_path / run / name).sort_by("row").to_pylist()
        return rows

    return read


@pytest.fixture(scope="session")
def kinds() -> Callable[[dict[str, Any]], list[str | None]]:
    """What each try of a row ended with, in order; null: an answer."""

    def of(row: dict[str, Any]) -> list[str | None]:
        return [attempt["error_kind"] for attempt in row["attempts"]]

    return of


def _ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    output, errors = process.communicate(timeout=_COMMAND_LIMIT_S)
    assert "Traceback" not in errors, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def _server(
    words: Sequence[object],
    environment: dict[str, str],
    folder: Path,
    port: int,
    start_limit_s: float = _START_LIMIT_S,
) -> Iterator[None]:
    """Runs a server that listens at `port` within; what it says goes into a file in `folder`."""
    log = folder / f"server-{port}.log"
    limit = ["timeout", "--kill-after=5", str(_SERVER_LIMIT_S)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*limit, *map(str, words)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end_s = time.monotonic() + start_limit_s
        while not _listens(port):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end_s, f"no server at port {port}, see {log}"
            time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _installed(program: str) -> Path:
    path = _INSTALLED / program
    assert path.exists(), f"{path} is missing: run make test-servers, which installs it"
    return path
