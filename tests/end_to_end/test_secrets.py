"""No key in anything that a run leaves behind or says, however a server gives it back."""

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from tests.processes import run_batchrun
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

KEY = "sk-proj-PieceOne/PieceTwo+PieceThree-" + "ThisIsTheKey" * 2
TEAM = "team/secret+ThisIsTheTeamsOwn"
_MARKS = ("ThisIsTheKey", "ThisIsTheTeamsOwn", "PieceOne", "PieceTwo", "PieceThree")
_ENV = {"OPENAI_API_KEY": KEY, "TEAM_KEY": TEAM}
_ROWS = 6
_OPENSSL = shutil.which("openssl")
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1")
_JOB = """
[input]
path = "prompts.jsonl"
[request]
model = "gpt-4.1"
input = "{{ question }}"
[endpoint]
base_url = "URL"
timeout_s = 5
idle_timeout_s = 0.3
[endpoint.headers]
X-Team = "env:TEAM_KEY"
X-Kind = "test"
[limits]
give_up_after_s = 0.5
[retry]
max_attempts = 2
max_wait_s = 0.05
[output]
path = "run"
"""


def _answer(text: str) -> bytes:
    message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    whole = {"id": f"resp_{text}", "object": "response", "status": "completed"}
    return json.dumps({**whole, "output": [message]}).encode()


class _Echo(BaseHTTPRequestHandler):
    """Gives the headers back in the way that the server's `how` says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.seen.append((self.headers["Authorization"], self.headers["X-Team"]))
        said = f"{self.headers['Authorization']} and {self.headers['X-Team']}"
        getattr(self, f"_{server.how}")(said)

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        kind = "text/html" if body[:1] == b"<" else "application/json"
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _error(self, said: str, status: int = 401) -> None:
        error = {"message": f"Incorrect API key provided: {said}.", "code": said, "type": said}
        self._say(status, json.dumps({"error": error}).encode(), X_Request_Id=f"req {said}")

    def _slashes(self, said: str) -> None:
        body = json.dumps({"error": said}).replace("/", "\\/").replace("+", "\\u002B")
        self._say(401, body.encode())

    def _row_error(self, said: str) -> None:
        said = f"Invalid value: {said}"
        error = {"message": said, "code": said}
        self._say(400, json.dumps({"error": error}).encode(), X_Request_Id=f"req {said}")

    def _busy(self, said: str) -> None:
        self._error(said, 500)

    def _page(self, said: str) -> None:
        self._say(403, f"<html><h1>No</h1><p>{quote(said, safe='')} {said}</p></html>".encode())

    def _redirect(self, said: str) -> None:
        self._say(
            307, b"", Location=f"http://u:{quote(said, safe='')}@127.0.0.1:9/{quote(said)}?k={said}"
        )

    def _ok(self, said: str) -> None:
        self._say(200, _answer(said), X_Request_Id=said)

    def _unreadable(self, said: str) -> None:
        self._say(200, said.encode())

    def _silent(self, said: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(said.encode())
        self.wfile.flush()
        threading.Event().wait(1)
        self.close_connection = True

    def _cut(self, said: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(said.encode())
        self.close_connection = True

    def _no_http(self, said: str) -> None:
        self.wfile.write(f"{said}\r\n\r\n".encode())
        self.close_connection = True

    def _stream(self, said: str) -> None:
        event = json.dumps({"type": "error", "code": said, "message": said})
        body = f"event: error\ndata: {event}\n\n".encode()
        self._say(200, body, Content_Type="text/event-stream")


@pytest.fixture
def echo() -> Iterator[Callable[..., tuple[str, Any]]]:
    """Starts a server that gives headers back; its address and what it has seen."""
    servers: list[ThreadingHTTPServer] = []

    def start(how: str, context: ssl.SSLContext | None = None) -> tuple[str, Any]:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
        server.how, server.seen = how, []
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # whoever hangs up early is none of its business
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        scheme, host = ("http", "127.0.0.1") if context is None else ("https", "localhost")
        return f"{scheme}://{host}:{server.server_port}/v1", server.seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def job(tmp_path: Path, write_rows: Any, questions: Any) -> Callable[[str], str]:
    """Writes a job file for an address."""
    write_rows(questions(_ROWS))

    def write(base_url: str) -> str:
        (tmp_path / "job.toml").write_text(_JOB.replace("URL", base_url))
        return "job.toml"

    return write


def _search(folder: Path, *said: str) -> None:
    """No mark of a secret in any file, name or text. Parquet is read too: it is compressed."""
    for path in folder.rglob("*"):
        texts = [str(path.relative_to(folder)).encode()]
        if path.is_file():
            texts.append(path.read_bytes())
        if path.suffix == ".parquet":
            texts.append(repr(pq.read_table(path).to_pydict()).encode())
        for text in texts:
            for mark in _MARKS:
                assert mark.encode() not in text, path
    for mark in _MARKS:
        assert mark not in "".join(said)


@pytest.mark.parametrize(
    ("how", "codes"),
    [
        ("ok", (0,)),
        ("error", (3,)),
        ("slashes", (3,)),
        ("page", (3, 4)),
        ("redirect", (3,)),
        ("row_error", (4,)),
        ("busy", (3, 4)),
        ("unreadable", (3, 4)),
        ("silent", (3, 4)),
        ("cut", (3, 4)),
        ("no_http", (3, 4)),
        ("stream", (3, 4)),
    ],
)
def test_a_key_that_a_server_gives_back_is_nowhere(
    how: str, codes: tuple[int, ...], tmp_path: Path, job: Any, echo: Any, batchrun: Run
) -> None:
    base_url, seen = echo(how)
    done = batchrun("run", job(base_url), "--json", env=_ENV)
    assert done.returncode in codes, done.stderr
    assert seen
    assert set(seen) == {(f"Bearer {KEY}", TEAM)}
    shown = batchrun("show", "run", "0").stdout if how in ("ok", "row_error") else ""
    _search(tmp_path, done.stdout, done.stderr, shown, batchrun("status", "run").stdout)
    if how == "ok":
        assert "Bearer *** and ***" in shown
    if how == "error":
        assert "Incorrect API key provided: Bearer *** and ***." in done.stderr
    if how == "redirect":
        assert "the server redirects to http://127.0.0.1:9/Bearer%20***" in done.stderr
        assert len(seen) == 1


def test_a_key_is_in_nothing_that_a_kill_or_a_lost_server_leaves(
    tmp_path: Path, job: Any, echo: Any, batchrun: Run, begin: Begin, wait_until: Any
) -> None:
    base_url, seen = echo("silent")
    process = begin("run", job(base_url), env=_ENV)
    wait_until(lambda: seen, process)
    process.kill()
    left = "".join(process.communicate(timeout=HANG_S))
    _search(tmp_path, left)
    gone = batchrun("run", job("http://127.0.0.1:9/v1"), env=_ENV)
    assert gone.returncode in (3, 4)
    _search(tmp_path, gone.stdout, gone.stderr)


def test_a_dry_run_shows_no_key(tmp_path: Path, job: Any, batchrun: Run) -> None:
    done = batchrun("run", job("https://example.org/v1"), "--dry-run", env=_ENV)
    assert done.returncode == 0, done.stderr
    assert "key from $OPENAI_API_KEY" in done.stderr
    _search(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (("--set", f"user={KEY}"), {}, "holds the value of the environment variable OPENAI"),
        (
            ("--set", f"metadata.team={TEAM}"),
            {},
            "holds the value of the environment variable TEAM",
        ),
        (
            ("--set", "user=sk-live-0123456789abcdef"),
            {},
            "request.user holds what looks like a key",
        ),
        (("--api-key-env", "sk_live_0123456789abcdef"), {}, "holds what looks like a key"),
        (("--base-url", f"https://{quote(KEY, safe='')}@example.org/v1"), {}, "take it out"),
        (("--base-url", f"https://example.org/v1?key={KEY}"), {}, "has a query"),
        ((), {"TEAM_KEY": f"{TEAM}\nX-More: 1"}, "TEAM_KEY holds characters that no header may"),
        ((), {"OPENAI_API_KEY": f"{KEY}\x1b[0m"}, "holds characters that no header may"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(
    words: tuple[str, ...], env: dict[str, str], said: str, tmp_path: Path, job: Any, batchrun: Run
) -> None:
    done = batchrun("run", job("http://127.0.0.1:9/v1"), *words, env={**_ENV, **env})
    assert done.returncode == 2
    assert said in done.stderr
    assert "0123456789abcdef" not in done.stderr
    _search(tmp_path, done.stdout, done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_key_over_plain_http_to_another_machine_is_refused(
    dry: tuple[str, ...], tmp_path: Path, job: Any, batchrun: Run
) -> None:
    command = ("run", job("http://192.0.2.1/v1"), *dry)
    done = batchrun(*command, env=_ENV)
    assert done.returncode == 2
    assert "plain http" in done.stderr
    assert "--insecure-http" in done.stderr
    assert not (tmp_path / "run").exists()
    header = batchrun(*command, "--api-key-env", "none", env=_ENV)
    assert header.returncode == 2
    assert "the header X-Team" in header.stderr
    assert batchrun(*command, "--simulate", env=_ENV).returncode == 0


def test_plain_http_may_be_allowed(job: Any, batchrun: Run) -> None:
    command = ("run", job("http://192.0.2.1/v1"), "--dry-run", "--insecure-http")
    assert batchrun(*command, env=_ENV).returncode == 0


def test_a_run_directory_is_for_its_owner_alone(tmp_path: Path, job: Any, batchrun: Run) -> None:
    assert batchrun("run", job("https://example.org/v1"), "--simulate").returncode == 0
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert batchrun("run", "prompts.jsonl", *_ASK, "--simulate").returncode == 0
    assert (tmp_path / "runs/prompts-simulated").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(_OPENSSL is None, reason="openssl makes the certificate")
def test_certificates_are_verified_and_an_authority_of_ones_own_can_be_named(
    tmp_path: Path, job: Any, echo: Any, environment: dict[str, str]
) -> None:
    assert _OPENSSL is not None
    folder = tmp_path / "authority"
    folder.mkdir()
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout k.pem"
    )
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", "c.pem")
    subprocess.run([_OPENSSL, *words.split(), *names], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c.pem", folder / "k.pem")
    base_url, seen = echo("ok", context)
    # Certificates are read as aiohttp is imported, which no fork does once more.
    refused = run_batchrun(tmp_path, {**environment, **_ENV}, "run", job(base_url))
    assert refused.returncode == 3, refused.stderr
    assert "certificate cannot be verified" in refused.stderr
    assert "stopped early: 0 of" in refused.stderr
    assert "SSL_CERT_FILE" in refused.stderr
    assert not seen
    _search(tmp_path, refused.stderr)
    shutil.rmtree(tmp_path / "run")
    known = {**environment, **_ENV, "SSL_CERT_FILE": str(folder / "c.pem")}
    trusted = run_batchrun(tmp_path, known, "run", job(base_url))
    assert trusted.returncode == 0, trusted.stderr
    assert len(seen) == _ROWS
