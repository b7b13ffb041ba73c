"""A store that fails, is silent, or takes and gives halves, now and then: each row once."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.object_server import AtRandom, Bucket, Call, Proxy
from tests.remote.test_store_kills import check

Command = Callable[..., subprocess.CompletedProcess[str]]
ROWS = 12_000


def is_of_parts(call: Call) -> bool:
    return ".parquet" in call.path and call.method not in ("GET", "HEAD")


class Store:
    """A run in a bucket behind a proxy, which follows the rule that a test gives it."""

    def __init__(
        self, bucket: Bucket, proxy: Proxy, s3: dict[str, str], write_run: Callable[..., str]
    ) -> None:
        self.bucket, self.url = bucket, f"{bucket.url}/run"
        self._proxy, self._write_run = proxy, write_run
        self.env = {**s3, "AWS_ENDPOINT_URL": proxy.address}

    def follow(self, rule: Callable[[Call], str | None]) -> None:
        self._proxy.rule = rule

    def words(self, rows: int, part_rows: int) -> tuple[str, ...]:
        """Writes so many rows, and a job whose tables go into the bucket; what runs it."""
        job = self._write_run(rows, self.url, f"part_rows = {part_rows}")
        return "run", job, "--simulate", "--quiet"


@pytest.fixture
def store(bucket: Bucket, proxy: Proxy, s3: dict[str, str], write_run: Callable[..., str]) -> Store:
    return Store(bucket, proxy, s3, write_run)


def test_a_part_that_arrives_by_half_is_uploaded_again(
    store: Store, batchrun: Command, tmp_path: Path
) -> None:
    """The store takes it for the whole, and says that all is well."""
    parts: list[Call] = []

    def rule(call: Call) -> str | None:
        if is_of_parts(call):
            parts.append(call)
        return "half" if parts == [call] else None

    store.follow(rule)
    done = batchrun(*store.words(20, 10), env=store.env)
    assert done.returncode == 0, done.stderr
    assert parts[0].path == parts[1].path
    check(store.bucket, tmp_path, 20)


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
    store: Store,
    batchrun: Command,
    verify: Callable[..., None],
    tmp_path: Path,
) -> None:
    rule = AtRandom(seed, share, faults)
    store.follow(rule)
    done = batchrun(*store.words(ROWS, 500), env=store.env)
    assert done.returncode == 0, done.stderr
    assert [call for _, call in rule.met if is_of_parts(call)]
    check(store.bucket, tmp_path, ROWS)
    store.follow(lambda _call: None)
    verify(store.url, env=store.env)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_a_long_run_is_read_through_faults(
    fault: str,
    seed: int,
    store: Store,
    batchrun: Command,
    verify: Callable[..., None],
) -> None:
    """As a source, to go on with, and by commands: no row is missing without a word."""
    words = store.words(ROWS, 500)
    done = batchrun(*words, "--limit", ROWS // 2, env=store.env)
    assert done.returncode == 0, done.stderr
    rule = AtRandom(seed, 0.2, (fault,), lambda call: call.method == "GET")
    store.follow(rule)
    other = {**store.env, "XDG_STATE_HOME": f"{store.env['XDG_STATE_HOME']}-other"}
    done = batchrun(*words, env=other)
    assert done.returncode == 0, done.stderr
    sql = "SELECT count(*), count(DISTINCT custom_id) FROM responses"
    for look in (store.env, other):
        seen = batchrun("sql", store.url, sql, "--format", "csv", env=look)
        assert seen.stdout.splitlines()[-1] == f"{ROWS},{ROWS}", seen.stderr
        verify(store.url, env=look)
    assert rule.met
