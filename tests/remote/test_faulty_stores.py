"""A store that fails, is silent, or takes and gives halves, now and then: each row once."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.object_server import AtRandom, Bucket, Call, Proxy
from tests.remote.test_store_kills import check

Command = Callable[..., subprocess.CompletedProcess[str]]
ROWS = 12_000
JOB = """
[input]
path = "prompts.jsonl"
[request]
model = "m"
input = "{{{{ question }}}}"
[output]
path = "{url}"
part_rows = {part_rows}
"""


def is_of_parts(call: Call) -> bool:
    return ".parquet" in call.path and call.method not in ("GET", "HEAD")


@pytest.fixture
def words(bucket: Bucket, tmp_path: Path, questions: Callable[[int], str]) -> Callable[..., str]:
    """Writes so many rows, and a job whose tables go into the bucket."""

    def write(rows: int, part_rows: int) -> str:
        (tmp_path / "prompts.jsonl").write_text(questions(rows))
        job = JOB.format(url=f"{bucket.url}/run", part_rows=part_rows)
        (tmp_path / "job.toml").write_text(job)
        return "job.toml"

    return write


def test_a_part_that_arrives_by_half_is_uploaded_again(
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
    words: Callable[..., str],
) -> None:
    """The store takes it for the whole, and says that all is well."""
    parts: list[Call] = []

    def rule(call: Call) -> str | None:
        if is_of_parts(call):
            parts.append(call)
        return "half" if parts == [call] else None

    proxy.rule = rule
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    done = batchrun("run", words(20, 10), "--simulate", "--quiet", env=env)
    assert done.returncode == 0, done.stderr
    assert parts[0].path == parts[1].path
    check(bucket, tmp_path, 20)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize(
    ("share", "faults"),
    [
        (0.25, ("fail",)),
        (0.25, ("cut",)),
        (0.05, ("half",)),
        (0.05, ("silence",)),  # which takes 20 s
        (0.2, ("fail", "cut", "half")),
    ],
    ids=["fail", "cut", "half", "silence", "all"],
)
def test_a_long_run_with_faults_at_random_writes(
    seed: int,
    share: float,
    faults: tuple[str, ...],
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
    words: Callable[..., str],
) -> None:
    rule = AtRandom(seed, share, faults)
    proxy.rule = rule
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    done = batchrun("run", words(ROWS, 500), "--simulate", "--quiet", env=env)
    assert done.returncode == 0, done.stderr
    assert [call for _, call in rule.met if is_of_parts(call)]
    check(bucket, tmp_path, ROWS)
    proxy.rule = lambda _call: None
    verified = batchrun("verify", f"{bucket.url}/run", env=env)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.long
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_a_long_run_is_read_through_faults(
    fault: str,
    seed: int,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    words: Callable[..., str],
) -> None:
    """As a source, to go on with, and by commands: no row is missing without a word."""
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    job = words(ROWS, 500)
    done = batchrun("run", job, "--simulate", "--quiet", "--limit", ROWS // 2, env=env)
    assert done.returncode == 0, done.stderr
    rule = AtRandom(seed, 0.2, (fault,), lambda call: call.method == "GET")
    proxy.rule = rule
    other = {**env, "XDG_STATE_HOME": f"{s3['XDG_STATE_HOME']}-other"}
    done = batchrun("run", job, "--simulate", "--quiet", env=other)
    assert done.returncode == 0, done.stderr
    sql = "SELECT count(*), count(DISTINCT custom_id) FROM responses"
    for look in (env, other):
        seen = batchrun("sql", f"{bucket.url}/run", sql, "--format", "csv", env=look)
        assert seen.stdout.splitlines()[-1] == f"{ROWS},{ROWS}", seen.stderr
        verified = batchrun("verify", f"{bucket.url}/run", env=look)
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert rule.met
