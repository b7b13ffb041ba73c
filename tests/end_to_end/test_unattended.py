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
from collections.abc import Callable, Iterator, Mapping
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
_CONTAINER = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}  # and no HOME
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """`/srv/nightly`, with the job file, three rows, a command and a file for the key."""
    folder = tmp_path / "nightly"
    (folder / ".venv" / "bin").mkdir(parents=True)
    command = folder / ".venv" / "bin" / "batchrun"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={_ROOT} exec {sys.executable} -m batchrun "$@"\n'
    )
    command.chmod(0o755)
    noon = (datetime.now() + timedelta(hours=12)).strftime("%H:%M")  # noqa: DTZ005 - as users write
    job = block(_PAGE, "The job file", "toml").replace("06:30", noon)
    (folder / "night.toml").write_text(job)
    (folder / "reviews").mkdir()
    rows = [json.dumps({"id": f"r{at}", "text": f"good {at}"}) for at in range(3)]
    (folder / "reviews" / "monday.jsonl").write_text("\n".join(rows))
    (folder / "runs").mkdir()
    yield folder


def _key_file(place: Path, base_url: str) -> None:
    (place / "key.env").write_text(f"OPENAI_API_KEY=sk-none\nOPENAI_BASE_URL={base_url}\n")


def _in_container(*command: str, cwd: Path, env: Mapping[str, str]) -> CompletedProcess[str]:
    """No home, no terminal, UTC, umask 077, the C locale; no root either where that can be."""
    user = {"user": _USER, "group": _USER, "extra_groups": []} if os.getuid() == 0 else {}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**_CONTAINER, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=0o077,
        timeout=HANG_S,
        check=False,
        **user,
    )


def _rows(folder: Path, query: Query, tmp_path: Path) -> list[tuple[Any, ...]]:
    sql = "SELECT count(*), count(*) FILTER (ok) FROM read_parquet(?)"
    return query(sql, folder.relative_to(tmp_path))


def test_the_crontab_line_mails_only_what_somebody_should_see(
    place: Path, tmp_path: Path, simulator: Any, query: Query
) -> None:
    line = block(_PAGE, "cron", "crontab").strip().replace("/srv/nightly", str(place))
    when, command = line.split(None, 5)[:5], line.split(None, 5)[5]
    assert when == ["30", "22", "*", "*", "*"]
    assert "%" not in command.replace("\\%", "")
    _key_file(place, simulator())

    def cron() -> str:  # as it does it
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env={"HOME": str(tmp_path), "LOGNAME": "me", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
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
    assert "duplicate id" in mail or "is not unique" in mail
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
    # The folders above belong to pytest, which lets in nobody else.
    parents = [path for path in tmp_path.parents if path.stat().st_mode & 0o777 == 0o700]
    try:
        for path in parents:
            path.chmod(0o711)
        words = [
            word.replace(mounts["job"], str(place)).replace(mounts["data"], str(tmp_path / "data"))
            for word in container["command"]
        ]
        words[0] = str(place / ".venv" / "bin" / "batchrun")
        env = {"OPENAI_BASE_URL": simulator(), "OPENAI_API_KEY": "sk-none"}
        done = _in_container(*words, cwd=place, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr.isascii()
        again = _in_container(*words, cwd=place, env=env)
        assert again.returncode == 0, again.stderr
        for command in ("status", "report", "cost", "verify"):
            run = str(tmp_path / "data" / "nightly")
            shown = _in_container(words[0], command, run, cwd=place, env={})
            assert shown.returncode == 0, shown.stderr
            assert shown.stdout.isascii()
    finally:
        for path in (tmp_path, place, place / "reviews"):
            path.chmod(0o755)
        for path in parents:
            path.chmod(0o700)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "data").rglob("*")}
    assert modes == {0}
    assert _rows(tmp_path / "data" / "nightly", query, tmp_path) == [(3, 3)]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 129, 130, 137, 143])
def test_the_page_says_what_each_exit_code_means(code: int) -> None:
    assert re.search(rf"^\| [^|]*\b{code}\b[^|]* \|", section(_PAGE, "Exit codes"), re.MULTILINE)
