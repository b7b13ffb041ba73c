"""The page of runs without anybody there: each of its files is run, in the places that it names."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from tests.doc_examples import block, section
from tests.waiting import HANG_S, wait_until

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_PAGE = "unattended"
_USER = 10_001  # of the Kubernetes Job; no such user has a name
# Root may enter and write everything, unless it gives that up.
_AS_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.getuid() == 0 else ()
_CONTAINER = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}  # and no HOME
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`/srv/nightly`, with the job file, three rows, a command and a file for the key."""
    folder = tmp_path / "nightly"
    (folder / ".venv" / "bin").mkdir(parents=True)
    command = folder / ".venv" / "bin" / "batchrun"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={_ROOT} exec {sys.executable} -m batchrun "$@"\n')
    command.chmod(0o755)
    noon = (datetime.now() + timedelta(hours=12)).strftime("%H:%M")  # noqa: DTZ005 - as users write
    job = block(_PAGE, "The job file", "toml").replace("06:30", noon)
    (folder / "night.toml").write_text(job)
    (folder / "reviews").mkdir()
    rows = [json.dumps({"id": f"r{at}", "text": f"good {at}"}) for at in range(3)]
    (folder / "reviews" / "monday.jsonl").write_text("\n".join(rows))
    (folder / "runs").mkdir()
    return folder


def _key_file(place: Path, base_url: str) -> None:
    (place / "key.env").write_text(f"OPENAI_API_KEY=sk-none\nOPENAI_BASE_URL={base_url}\n")


def _in_container(*command: str, cwd: Path, env: Mapping[str, str]) -> CompletedProcess[str]:
    """No home, no terminal, UTC, umask 077, the C locale, and no rights that others lack."""
    done: CompletedProcess[str] = subprocess.run(
        [*_AS_USER, *command],
        cwd=cwd,
        env={**_CONTAINER, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=0o077,
        timeout=HANG_S,
        check=False,
    )
    return done


def _rows(folder: Path, query: Query, tmp_path: Path) -> list[tuple[Any, ...]]:
    sql = "SELECT count(*), count(*) FILTER (ok) FROM read_parquet(?)"
    return query(sql, folder.relative_to(tmp_path))


def test_the_crontab_line_mails_only_what_somebody_should_see(
    place: Path, tmp_path: Path, simulator: Any, query: Query
) -> None:
    line = block(_PAGE, "cron", "text").strip().replace("/srv/nightly", str(place))
    when, command = line.split(None, 5)[:5], line.split(None, 5)[5]
    assert when == ["30", "22", "*", "*", "*"]
    assert "%" not in command.replace("\\%", "")
    _key_file(place, simulator())

    def cron() -> str:  # as it does it
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env={
                "HOME": str(tmp_path),
                "LOGNAME": "me",
                "SHELL": "/bin/sh",
                "PATH": "/usr/bin:/bin",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        return done.stdout

    assert cron() == ""
    assert _rows(place / "runs" / "nightly", query, tmp_path) == [(3, 3)]
    (place / "reviews" / "tuesday.jsonl").write_text('{"id": "r1", "text": "again"}')
    mail = cron()
    assert "duplicate custom_id" in mail
    assert "monday.jsonl:2 and tuesday.jsonl:1" in mail
    (place / "reviews" / "tuesday.jsonl").write_text('{"id": "r9", "text": "more"}')
    assert cron() == ""
    assert _rows(place / "runs" / "nightly", query, tmp_path) == [(4, 4)]


def _unit(text: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit


def test_the_systemd_unit_and_its_timer(
    place: Path, tmp_path: Path, simulator: Any, query: Query
) -> None:
    texts = re.findall(r"^```ini\n(.*?)^```", section(_PAGE, "systemd"), re.DOTALL | re.MULTILINE)
    service, timer = [text.replace("/srv/nightly", str(place)) for text in texts]
    unit = _unit(service)["Service"]
    assert set(unit["RestartPreventExitStatus"].split()) == {"2", "3", "4"}
    _key_file(place, simulator())
    variables = dict(line.split("=", 1) for line in (place / "key.env").read_text().splitlines())
    done = subprocess.run(
        shlex.split(unit["ExecStart"]),
        cwd=unit["WorkingDirectory"],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=int(unit["UMask"], 8),
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _rows(place / "runs" / "nightly", query, tmp_path) == [(3, 3)]
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: the unit was run, and not verified")
    for name, text in (("service", service.replace("User=batchrun\n", "")), ("timer", timer)):
        (tmp_path / f"batchrun-nightly.{name}").write_text(text)
    units = [str(tmp_path / f"batchrun-nightly.{name}") for name in ("service", "timer")]
    checked = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "batchrun-nightly" in line]
    assert (checked.returncode, said) == (0, []), checked.stderr
    when = _unit(timer)["Timer"]["OnCalendar"]
    dated = subprocess.run([analyze, "calendar", when], capture_output=True, text=True, check=False)
    assert dated.returncode == 0, dated.stderr


def test_the_slurm_script_goes_on_after_the_signal_of_its_end(
    place: Path, tmp_path: Path, simulator: Any, stats: Any, query: Query, begin: Any
) -> None:
    script = place / "night.slurm"
    script.write_text(block(_PAGE, "Slurm", "bash"))
    rows = [json.dumps({"id": f"r{at}", "text": f"good {at}"}) for at in range(200)]
    (place / "reviews" / "monday.jsonl").write_text("\n".join(rows))
    url = simulator("--latency", "0.3")
    _key_file(place, url)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_SUBMIT_DIR": str(place)}

    def submit() -> "Popen[str]":
        process: Popen[str] = begin(command=["/bin/bash", str(script)], env=env, cwd=tmp_path)
        return process

    first = submit()
    wait_until(lambda: stats(url)["completions"] > 0, first)
    first.send_signal(signal.SIGTERM)  # to the script alone, as `--signal=B:TERM@120` does
    assert first.wait(HANG_S) == 143
    again = submit()
    assert again.wait(HANG_S) == 0, again.stderr
    assert _rows(place / "runs" / "nightly", query, tmp_path) == [(200, 200)]
    assert stats(url)["completions"] == 200


def test_the_kubernetes_job_runs_in_such_a_container(
    place: Path, tmp_path: Path, simulator: Any, query: Query
) -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(block(_PAGE, "Kubernetes", "yaml"))["spec"]["jobTemplate"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # as a policy for failures of pods asks
    assert pod["terminationGracePeriodSeconds"] > 20
    (container,) = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["securityContext"]["runAsUser"] == _USER
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert {one["name"] for one in pod["volumes"]} == set(mounts)
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    for path in (tmp_path, place, place / "reviews"):
        path.chmod(0o555)
    try:
        words = [
            word.replace(mounts["job"], str(place)).replace(mounts["data"], str(tmp_path / "data"))
            for word in container["command"]
        ]
        words[0] = str(place / ".venv" / "bin" / "batchrun")
        env = {"OPENAI_BASE_URL": simulator(), "OPENAI_API_KEY": "sk-none"}
        done = _in_container(*words, cwd=place, env=env)
        assert done.returncode == 0, done.stderr
        again = _in_container(*words, cwd=place, env=env)
        assert again.returncode == 0, again.stderr
        report = _in_container(
            words[0], "report", str(tmp_path / "data" / "nightly"), cwd=place, env={}
        )
        assert report.returncode == 0, report.stderr
    finally:
        for path in (tmp_path, place, place / "reviews"):
            path.chmod(0o755)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "data").rglob("*")}
    assert modes == {0}
    assert _rows(tmp_path / "data" / "nightly", query, tmp_path) == [(3, 3)]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 129, 130, 137, 143])
def test_the_page_says_what_each_exit_code_means(code: int) -> None:
    assert re.search(rf"^\| [^|]*\b{code}\b[^|]* \|", section(_PAGE, "Exit codes"), re.MULTILINE)


# Places where something is missing that is there when somebody looks.


@pytest.fixture
def alone(tmp_path: Path, write_rows: Any) -> Callable[..., CompletedProcess[str]]:
    """`batchrun ...` as such a place starts it; what it prints is bytes of that console."""
    write_rows([{"id": f"r{at}", "text": f"row \u2013 {at} … é"} for at in range(3)], "a.jsonl")

    def start(
        *words: object, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, **options: Any
    ) -> CompletedProcess[str]:
        done = subprocess.run(
            [*_AS_USER, sys.executable, "-m", "batchrun", *map(str, words)],
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(_ROOT), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=HANG_S,
            check=False,
            **options,
        )
        said = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
        assert "Traceback" not in said[1], said[1]
        return CompletedProcess(done.args, done.returncode, *said)

    return start


_TO = ("--prompt", "{{ text }}", "--model", "gpt-4.1", "--simulate")


_LONG = pytest.mark.long


@pytest.mark.parametrize(
    "home",
    [
        pytest.param({}, id="none"),
        pytest.param({"HOME": ""}, id="empty", marks=_LONG),
        pytest.param({"HOME": "/nonexistent"}, id="absent", marks=_LONG),
        pytest.param({"HOME": "relative"}, id="relative", marks=_LONG),
        pytest.param({"XDG_CONFIG_HOME": "/x"}, id="configuration", marks=_LONG),
    ],
)
def test_no_home_is_needed(alone: Any, home: dict[str, str]) -> None:
    done = alone("run", "a.jsonl", *_TO, "--max-cost", "1", "-o", "run", env=home)
    assert done.returncode == 0, done.stderr


def test_a_home_that_may_not_be_entered_is_passed_over(tmp_path: Path, alone: Any) -> None:
    home = tmp_path / "home"
    prices = home / ".config" / "batchrun" / "prices.toml"
    prices.parent.mkdir(parents=True)
    prices.write_text("broken")
    prices.chmod(0)
    home.chmod(0)
    words = ("run", "a.jsonl", *_TO, "--max-cost", "1", "-o", "run")
    try:
        done = alone(*words, env={"HOME": str(home)})
        assert done.returncode == 0, done.stderr
    finally:
        home.chmod(0o755)
    # A file of prices that is there and cannot be read is no such home.
    done = alone(*words, env={"HOME": str(home)})
    assert done.returncode == 2
    assert "prices.toml: cannot be read (Permission denied)" in done.stderr


@pytest.fixture
def there(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """`batchrun ...` in a directory that was deleted."""
    gone = tmp_path / "gone"
    script = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {sys.executable} -m batchrun "

    def start(*words: object) -> CompletedProcess[str]:
        done = subprocess.run(
            ["/bin/sh", "-c", script + shlex.join(map(str, words))],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return start


@pytest.mark.usefixtures("alone")
def test_a_working_directory_that_was_deleted_is_said(tmp_path: Path, there: Any) -> None:
    lost = there("run", tmp_path / "a.jsonl", *_TO)
    assert lost.returncode == 2
    assert "the working directory no longer exists" in lost.stderr
    done = there("run", tmp_path / "a.jsonl", *_TO, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = there("status", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert there("status", "run").returncode == 2


@pytest.mark.long
def test_each_command_says_that_the_working_directory_was_deleted(
    tmp_path: Path, alone: Any, there: Any
) -> None:
    alone("run", "a.jsonl", *_TO, "-o", "known")
    for command in ("report", "cost", "verify"):
        done = there(command, tmp_path / "known")
        assert done.returncode == 0, done.stderr
        assert there(command, "known").returncode == 2
    assert there("run", "a.jsonl", *_TO).returncode == 2
    done = there("export", tmp_path / "known", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=_LONG)])
def test_a_console_gets_text_that_it_can_show(alone: Any, encoding: str) -> None:
    env = {
        "PYTHONIOENCODING": encoding,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
    }

    def shown(*words: object) -> str:
        done = alone(*words, env=env)
        assert done.returncode == 0, done.stderr
        text: str = done.stdout + done.stderr
        assert encoding == "latin-1" or text.isascii(), text
        # UTF-8 read as Latin-1 has such letters.
        assert not set("\u00e2\u00c3").intersection(text), text
        return text

    shown("run", "a.jsonl", *_TO, "-o", "run", "--set", "metadata.sign=é…漢")
    found = shown("show", "run", "r1")
    assert "row ? 1" in found or "row - 1 ... " in found, found
    assert "é" in found or encoding == "ascii"
    shown("report", "run")
    if encoding == "latin-1":  # the long form
        for command in ("status", "cost", "verify"):
            shown(command, "run")
        shown("cost", "run", "--by", "text")
        shown("sql", "run", "SELECT text FROM responses")
        shown("estimate", "a.jsonl", *_TO[:4])
        shown("run", "--help")
    row = json.loads(alone("show", "run", "r1", "--json", env=env).stdout)
    assert row["text"] == "row \u2013 1 … é"  # JSON says what it says
    (found_row,) = json.loads(
        alone("sql", "run", "SELECT text FROM responses WHERE custom_id = 'r2'", "--format", "json",
              env=env).stdout
    )  # fmt: skip
    assert found_row == {"text": "row \u2013 2 … é"}
    refused = alone("run", "fehlt\u2013é.jsonl", *_TO, env=env)
    assert refused.returncode == 2
    assert encoding == "latin-1" or refused.stderr.isascii()
