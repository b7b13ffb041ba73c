"""The command as a process of its own, as scripts use it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchrun.simulator.settings import Fault, Quirk
from tests.waiting import HANG_S

_RUN = [sys.executable, "-c", "from batchrun.cli.simulate import simulate; simulate()"]


@contextmanager
def _running(*options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the base URL that it printed."""
    with subprocess.Popen(
        [*_RUN, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def _refused(*options: str) -> str:
    done = subprocess.run([*_RUN, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return " ".join(done.stderr.split())


def _post(base_url: str, key: str = "x", **fields: object) -> bytes:
    request = urllib.request.Request(  # noqa: S310 - the server under test
        f"{base_url}/responses",
        data=json.dumps({"model": "gpt-4.1", "input": "hello", **fields}).encode(),
        headers={"Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=HANG_S) as response:  # noqa: S310 - the same
        body: bytes = response.read()
        return body


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_answers_and_ends_with_0_at_a_signal(number: signal.Signals) -> None:
    with _running("--seed", "3", "--latency", "0") as (process, base_url):
        assert base_url.startswith("http://127.0.0.1:")
        assert base_url.endswith("/v1")
        assert json.loads(_post(base_url))["object"] == "response"
        process.send_signal(number)
        out, err = process.communicate(timeout=HANG_S)
        assert (process.returncode, out, err) == (0, "", "")


def test_it_ends_though_answers_never_do() -> None:
    with (
        _running("--fault", "stalled_body=1", "--latency", "0") as (process, base_url),
        urllib.request.urlopen(  # noqa: S310 - the server under test
            urllib.request.Request(  # noqa: S310 - the same
                f"{base_url}/responses", data=b'{"model":"m","input":"x"}'
            ),
            timeout=HANG_S,
        ) as response,
    ):
        assert response.read(1) == b"{"
        process.terminate()
        assert process.wait(timeout=HANG_S) == 0


@pytest.mark.parametrize("kind", ["reset_before", "reset_within"])
def test_a_connection_is_reset_by_its_faster_loop_too(kind: str) -> None:
    with _running("--fault", f"{kind}=1", "--latency", "0") as (_, base_url):
        with pytest.raises(OSError, match=r"reset by peer"):
            _post(base_url)
        counts = urllib.request.urlopen(  # noqa: S310 - the server under test
            base_url.removesuffix("/v1") + "/stats", timeout=HANG_S
        )
        with counts:
            assert json.load(counts)["destroyed"] == (kind == "reset_within")


def test_the_key_comes_from_the_environment() -> None:
    with _running("--require-key-env", "SIMULATED_KEY", SIMULATED_KEY="right") as (_, base_url):
        assert _post(base_url, key="right")
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            _post(base_url, key="wrong")
        caught.value.close()


def test_a_connection_can_hang() -> None:
    with _running("--never-accept") as (process, base_url):
        assert base_url.startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait(timeout=HANG_S) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "509=0.1"], "no fault is called '509'; there are 429_hint"),
        (["--fault", "500_html"], "write KIND=RATE with a rate between 0 and 1"),
        (["--fault", "500_html=2"], "a rate lies between 0 and 1"),
        (["--faults", "2"], "--faults"),
        (["--quirk", "crfl"], "no quirk is called 'crfl'; there are no_event_lines"),
        (["--rpm", "0"], "--rpm"),
        (["--port", "70000"], "--port"),
        (["--require-key-env", "SURELY_NOT_SET"], "the environment variable is not set"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_a_wrong_option_is_a_message_and_exit_2(options: list[str], message: str) -> None:
    assert message in _refused(*options)


def test_a_taken_port_is_a_message_and_exit_2() -> None:
    with _running() as (_, base_url):
        port = base_url.rsplit(":", 1)[1].removesuffix("/v1")
        assert f"cannot listen on 127.0.0.1, port {port}" in _refused("--port", port)


def test_help_has_examples_and_names_every_kind_of_fault_and_quirk() -> None:
    done = subprocess.run([*_RUN, "--help"], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert "batchrun simulate --port 0" in text
    words = set(text.replace(",", " ").replace(". ", " ").split())
    assert not {*Fault, *Quirk} - words


def test_the_page_on_the_simulator_names_every_kind_of_fault_and_quirk() -> None:
    page = Path(__file__).parents[2] / "docs" / "simulator.md"
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    named = set(re.findall(r"`([^`]+)`", text))
    assert not {*Fault, *Quirk} - named


def test_quirks_and_faults_are_asked_for_by_name() -> None:
    options = ("--quirk", "renamed_model", "--quirk", "no_usage", "--latency", "0")
    with _running(*options, "--fault", "524_problem=1e-9") as (_, base_url):
        answer = json.loads(_post(base_url))
        assert answer["model"] == "gpt-4.1-data"
        assert "usage" not in answer
