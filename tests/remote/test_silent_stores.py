"""A store that does not answer at the start, all calls or some: said within 30 s, exit code 2."""

import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchrun.errors import JobError
from batchrun.remote import claims, object_stores
from batchrun.remote.object_stores import store_of
from batchrun.store.run_dir import RunDir
from tests.processes import run_batchrun
from tests.remote.object_server import Bucket, Call, Proxy
from tests.remote.other_stores import OtherStore
from tests.runs import run_record

MOST_S = 30.0
SAID = r"cannot be reached|no answer for \d+ s"
SILENT = ("all", "PUT", "LIST", "HEAD", "run.json")
OF_SOURCES = ("all", "LIST", "HEAD")


def is_silent(silent: str, call: Call) -> bool:
    """Whether a call, of any store, is one of those that nobody answers."""
    is_write = call.method in ("PUT", "POST")
    is_list = call.method == "GET" and bool(re.search(r"list-type=|comp=list|/o\?", call.path))
    is_object = call.method == "HEAD" or (call.method == "GET" and "/storage/v1/" in call.path)
    return {
        "all": True,
        "PUT": is_write,
        "LIST": is_list,
        "HEAD": is_object and not is_list,
        "run.json": is_write and "run.json" in call.path,
    }[silent]


def test_what_is_first_done_with_a_run_has_short_limits(
    s3_server: str,
    proxy: Proxy,
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """They are a tenth here; any call with the limits that hold later would wait for minutes."""
    for name, value in {**s3, "AWS_ENDPOINT_URL": proxy.address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_stores, "_FIRST_SILENCE_S", 0.5)
    monkeypatch.setattr(object_stores, "_FIRST_CALL_S", 3.0)
    monkeypatch.setattr(claims, "_RELEASE_S", 0.2)
    buckets = {
        silent: Bucket(s3_server, f"silent-{number}") for number, silent in enumerate(SILENT)
    }
    of = {bucket.name: silent for silent, bucket in buckets.items()}

    def rule(call: Call) -> str | None:
        silent = of[call.path.lstrip("/").partition("/")[0].partition("?")[0]]
        return "silence" if is_silent(silent, call) else None

    def begin(silent: str) -> float:
        began_s = time.monotonic()
        with pytest.raises(JobError, match=SAID):
            run = RunDir.open(tmp_path / silent, f"{buckets[silent].url}/run")
            try:
                assert silent == "run.json"
                run.save(run_record(rows=1))
            finally:
                run.close()
        return time.monotonic() - began_s

    for bucket in buckets.values():  # nothing is opened while a call goes on: S3's library waits
        for is_first in (False, True):
            store_of(bucket.url, is_first=is_first)
    proxy.rule = rule
    with ThreadPoolExecutor(len(SILENT)) as pool:
        assert max(pool.map(begin, SILENT)) < MOST_S


@pytest.mark.long
@pytest.mark.parametrize("silent", SILENT)
def test_a_store_that_is_silent_at_the_start_is_said(
    silent: str,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    environment: dict[str, str],
    questions: Callable[[int], str],
    tmp_path: Path,
) -> None:
    for key in ("in/a.jsonl", "old/run.json"):
        bucket.put(key, questions(1))
    proxy.rule = lambda call: "silence" if is_silent(silent, call) else None
    env = {**environment, **s3, "AWS_ENDPOINT_URL": proxy.address}
    check_said(silent, bucket.url, env, questions(1), tmp_path)


@pytest.mark.stores
@pytest.mark.parametrize("silent", SILENT)
def test_another_store_that_is_silent_at_the_start_is_said(
    silent: str,
    other_store: OtherStore,
    environment: dict[str, str],
    questions: Callable[[int], str],
    tmp_path: Path,
) -> None:
    for key in ("in/a.jsonl", "old/run.json"):
        other_store.bucket.put(key, questions(1))
    other_store.proxy.rule = lambda call: "silence" if is_silent(silent, call) else None
    env = {**environment, **other_store.environment}
    check_said(silent, other_store.url, env, questions(1), tmp_path)


@pytest.mark.stores
def test_another_store_where_nobody_listens_is_said(
    other_store: OtherStore,
    environment: dict[str, str],
    questions: Callable[[int], str],
    tmp_path: Path,
) -> None:
    other_store.proxy.close()
    check_said(
        "all", other_store.url, {**environment, **other_store.environment}, questions(1), tmp_path
    )


def check_said(
    silent: str, url: str, environment: dict[str, str], questions: str, folder: Path
) -> None:
    """Commands that use the store all end with a reason in time, as processes of their own.

    At the end of one, its libraries may still wait for the store.
    """
    (folder / "prompts.jsonl").write_text(questions)
    prompt = ("--prompt", "{{ question }}", "--model", "m", "--simulate", "--quiet")
    each: list[tuple[str, ...]] = [("run", "prompts.jsonl", *prompt, "-o", f"{url}/run")]
    if silent in OF_SOURCES:
        each += [
            ("run", f"{url}/in/*.jsonl", *prompt, "-o", "here"),
            ("status", f"{url}/old"),
        ]
    if silent in ("all", "PUT", "LIST"):
        (folder / "answers.jsonl").write_text('{"id": "a", "answer": "b"}\n')
        columns = ("--id", "id", "--text", "answer")
        each.append(("import", "answers.jsonl", *columns, "-o", f"{url}/import"))

    def run(words: tuple[str, ...]) -> tuple[float, subprocess.CompletedProcess[str]]:
        began_s = time.monotonic()
        done = run_batchrun(folder, environment, *words)
        return time.monotonic() - began_s, done

    with ThreadPoolExecutor(len(each)) as pool:
        for took_s, done in pool.map(run, each):
            assert done.returncode == 2, done.stderr
            assert re.search(SAID, done.stderr), done.stderr
            assert took_s < MOST_S
