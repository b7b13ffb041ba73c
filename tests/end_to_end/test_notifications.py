"""Whoever is not there is told, over real HTTP and SMTP, and no run waits long for that."""

import email
import email.policy
import json
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from tests.processes import free_port, read_rest
from tests.waiting import HANG_S

pytest.importorskip("apprise", reason="the extra `notify` is not installed")

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

_MAIL_KEY = "ThisIsTheMailKey1"
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")


class _Inbox(BaseHTTPRequestHandler):
    """Takes what is sent to `/`, answers 500 to `/fails/...`, and never to `/hangs`."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_POST(self) -> None:
        server: Any = self.server
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/":
            server.got.append(sent)
        if self.path == "/hangs":
            server.is_over.wait(HANG_S)
        self.send_response(500 if self.path.startswith("/fails") else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server's URL, as apprise has it, and what it gets."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Inbox)
    server.got, server.is_over, server.daemon_threads = [], threading.Event(), True
    server.handle_error = lambda *_: None  # whoever was killed hangs up
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/", server.got
    server.is_over.set()
    server.shutdown()
    server.server_close()


class _Mails:
    def __init__(self) -> None:
        self.got: list[email.message.EmailMessage] = []

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        assert session.authenticated
        self.got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@pytest.fixture
def mailbox() -> Iterator[tuple[str, list[email.message.EmailMessage]]]:
    """The URL of a mail server that asks for a password, and the mails that it gets."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult, LoginPassword

    def login(_server: Any, _session: Any, _envelope: Any, _how: str, given: Any) -> AuthResult:
        expected = LoginPassword(b"ops", _MAIL_KEY.encode())
        return AuthResult(success=given == expected)

    mails, port = _Mails(), free_port()
    controller = Controller(
        mails, hostname="127.0.0.1", port=port, authenticator=login, auth_require_tls=False
    )
    controller.start()
    who = "from=night@example.com&to=ops@example.com"
    yield f"mailto://ops:{_MAIL_KEY}@127.0.0.1:{port}/?{who}", mails.got
    controller.stop()


def _titles(got: list[dict[str, str]]) -> list[str]:
    return sorted(re.sub(r"[\d.]+ ?%", "N%", one["title"]) for one in got)


def _about(got: list[dict[str, str]], words: str) -> str:
    (found,) = [one for one in got if words in one["title"]]
    return found["message"]


def _nowhere(folder: Path, *said: str) -> None:
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in (*texts, *map(str.encode, said)) if b"ThisIsThe" in text]


def test_the_end_is_told_by_http_and_by_mail_and_no_password_is_left(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run, inbox: Any, mailbox: Any
) -> None:
    write_rows(questions(5))
    (url, got), (mail, mails) = inbox, mailbox
    words = ("run", "prompts.jsonl", *_ASK, "--simulate", "--notify", url, "--notify", "env:OPS")
    done = batchrun(*words, env={"OPS": mail})
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (said,) = got
    assert (said["title"], said["type"]) == ("batchrun: run finished: all rows are ok", "success")
    lines = ["run: run", "state: finished (exit code 0)", "rows: 5 of 5", "ok: 5", "not ok: 0"]
    assert said["message"].splitlines()[:5] == lines
    assert "cost: $" in said["message"]
    assert "nothing is paid" in said["message"]
    (mailed,) = mails
    assert (mailed["subject"], mailed["to"]) == (said["title"], "ops@example.com")
    body = mailed.get_body()
    assert body is not None
    for line in lines:
        assert line in body.get_content()
    _nowhere(tmp_path, done.stdout, done.stderr)
    assert "notify" not in json.loads((tmp_path / "run" / "run.json").read_bytes())["job"]
    # The job file's addresses, and none. A command that has nothing to send ends too.
    job = '[input]\npath = "prompts.jsonl"\n[request]\nmodel = "gpt-4.1"\n'
    job += 'input = "{{ question }}"\n[notify]\nurls = ["env:HTTP"]\n'
    (tmp_path / "job.toml").write_text(job)
    quiet = batchrun("run", "job.toml", "--simulate", "-o", "run", "--notify", "")
    assert quiet.returncode == 0, quiet.stderr
    again = batchrun("run", "job.toml", "--simulate", "-o", "run", env={"HTTP": url})
    assert again.returncode == 0, again.stderr
    assert _titles(got) == ["batchrun: run finished: all rows are ok"] * 2


def test_a_budget_is_told_at_80_percent_and_at_its_end(
    write_rows: Any, questions: Any, batchrun: Run, simulator: Any, inbox: Any
) -> None:
    write_rows(questions(60))
    url, got = inbox
    base_url = simulator("--latency", "0.2", "--output-tokens", "50")
    caps = ("--set", "max_output_tokens=100", "--max-cost", "0.02", "--concurrency", "2")
    words = ("run", "prompts.jsonl", *_ASK, *caps, "--base-url", base_url, "--notify", url)
    done = batchrun(*words)
    assert done.returncode == 3, done.stderr
    assert _titles(got) == [
        "batchrun: run has spent N% of --max-cost",
        "batchrun: run stopped early",
    ]
    assert re.search(r"\$0\.01\d* of \$0\.02\d* \(--max-cost\) are spent", _about(got, "has spent"))
    end = _about(got, "stopped early")
    assert "state: stopped early (exit code 3)" in end
    assert "why: the budget is used up" in end
    assert "the cap is $0.02" in end
    (command,) = re.findall(r"^next: (.*)$", end, re.MULTILINE)
    assert command == done.stderr.splitlines()[-1].removeprefix("next: ")
    assert "--max-cost" in shlex.split(command)


def test_a_stall_is_told_and_its_end(
    write_rows: Any, questions: Any, begin: Begin, simulator: Any, inbox: Any
) -> None:
    write_rows(questions(2))
    url, got = inbox
    script = str(Path(__file__).parent / "soon_notified.py")
    words = ("run", "prompts.jsonl", *_ASK, "--concurrency", "1", "--notify", url)
    process = begin(
        "0.4",
        "60",
        *words,
        "--base-url",
        simulator("--latency", "1.2"),
        command=(sys.executable, script),
    )
    said = read_rest(process)
    assert process.returncode == 0, said
    assert "sending messages to json://127.0.0.1" in said or "warning" not in said
    titles = _titles(got)
    assert titles.count("batchrun: run is stalled") == 2
    assert titles.count("batchrun: run continues") >= 1
    assert titles.count("batchrun: run finished: all rows are ok") == 1
    still = next(one["message"] for one in got if "is stalled" in one["title"])
    assert re.search(r"No row was completed for (0\.[4-9]|[1-9]\d*\.\d) s", still)
    assert "limited by: the answers to requests in flight" in still
    assert "next: batchrun status run" in still


def test_addresses_that_fail_are_warnings(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run, inbox: Any
) -> None:
    write_rows(questions(3))
    url, got = inbox
    addresses = (url, "env:BAD", f"json://127.0.0.1:{free_port()}/")
    words = [word for address in addresses for word in ("--notify", address)]
    env = {"BAD": f"{url.replace('//', '//ops:ThisIsTheKey@')}fails/ThisIsThePath"}
    done = batchrun("run", "prompts.jsonl", *_ASK, "--simulate", "--json", *words, env=env)
    assert done.returncode == 0, done.stderr
    assert _titles(got) == ["batchrun: run finished: all rows are ok"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    summary = json.loads(done.stdout)
    assert sorted(f"warning: {one}" for one in summary["warnings"]) == sorted(warnings)
    bad, gone = sorted(warnings)
    told = 'did not get "batchrun: run finished: all rows are ok"'
    assert f"env:BAD {told}: Failed to send JSON POST notification: " in bad
    assert "error=500" in bad
    assert "A Connection error occurred" in gone
    _nowhere(tmp_path, done.stdout, done.stderr)


def test_an_address_that_hangs_is_given_up(
    write_rows: Any, questions: Any, begin: Begin, inbox: Any
) -> None:
    write_rows(questions(3))
    words = ("run", "prompts.jsonl", *_ASK, "--simulate", "--notify", f"{inbox[0]}hangs?rto=99")
    script = str(Path(__file__).parent / "soon_notified.py")
    process = begin("600", "2", *words, command=(sys.executable, script))
    said = read_rest(process)
    assert process.returncode == 0, said
    assert re.search(r"warning: json://\S+/hangs did not get .* no answer within 2 s", said)
    assert "done: 3 of 3 rows" in said


def test_what_ends_before_anything_is_sent_is_told(
    tmp_path: Path, batchrun: Run, inbox: Any
) -> None:
    url, got = inbox
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\nno row\n')
    done = batchrun("run", "bad.jsonl", *_ASK, "--simulate", "--notify", url)
    assert done.returncode == 2
    (said,) = got
    assert (said["title"], said["type"]) == ("batchrun: run did not start", "failure")
    assert "state: nothing was sent (exit code 2)" in said["message"]
    assert "bad.jsonl:2" in said["message"]


_REFUSED: tuple[tuple[tuple[str, ...], dict[str, str], str], ...] = (
    # Seen at once.
    (("--notify", "nowhere"), {}, "number 1 is not a URL"),
    (("--notify", "env:NOT-A-NAME"), {}, "number 1 is not a URL"),
    (("--notify", "env:UNSET"), {}, "the environment variable UNSET is not set"),
    (("--notify", "mailto://me:ThisIsTheKey@example.com"), {}, "notify.urls holds a secret"),
    (("--notify", "json://example.com/?+X-Token=ThisIsTheKey"), {}, "write env:NAME in its place"),
    (
        ("--set", "metadata.to=json://u:ThisIsThe@x"),
        {"A": "json://u:ThisIsThe@x"},
        "holds the value",
    ),
    # Seen by apprise.
    (
        ("--notify", "nosuch://example.com/ThisIsTheKey"),
        {},
        "number 1 (nosuch://…) is not a URL that",
    ),
    (("--notify", "tgram://123456789:ThisIsTheKey_hijklmnopqrstuvwx/12/"), {}, "holds a secret"),
    (
        ("--dry-run", "--notify", "env:A"),
        {"A": "discord://ThisIsTheKey"},
        "env:A is not a URL that",
    ),
)


def test_a_wrong_address_is_refused_before_anything_is_sent(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run, inbox: Any
) -> None:
    write_rows(questions(1))
    url, got = inbox
    command = ("run", "prompts.jsonl", *_ASK, "--simulate", "--notify", url)
    for words, env, said in _REFUSED:
        more = ("--notify", "env:A") if words[0] == "--set" else ()
        done = batchrun(*command[:-2], *words, *more, env=env)
        assert (done.returncode, said in done.stderr) == (2, True), (words, done.stderr)
        if words[0] != "--set":
            _nowhere(tmp_path, done.stdout, done.stderr)
    (tmp_path / "job.toml").write_text(
        '[input]\npath = "prompts.jsonl"\n[notify]\nurls = ["mailtos://me:ThisIsTheKey@mail.com"]\n'
    )
    done = batchrun("run", "job.toml", *_ASK, "--simulate")
    assert done.returncode == 2
    assert "job.toml: notify.urls holds a secret. Files and command lines are seen" in done.stderr
    assert "ThisIsThe" not in done.stderr
    assert not got
    assert not (tmp_path / "run").exists()


def test_without_the_extra_it_says_how_to_install_it(
    tmp_path: Path, write_rows: Any, questions: Any, begin: Begin
) -> None:
    write_rows(questions(1))
    code = "import sys; sys.modules['apprise'] = None; from batchrun.cli import main; main()"
    words = ("run", "prompts.jsonl", *_ASK, "--simulate")
    process = begin(*words, "--notify", "json://localhost", command=(sys.executable, "-c", code))
    said = read_rest(process)
    assert process.returncode == 2
    assert "pip install 'batchrun[notify]'" in said
    assert not (tmp_path / "run").exists()
    process = begin(*words, command=(sys.executable, "-c", code))
    assert read_rest(process)
    assert process.returncode == 0
