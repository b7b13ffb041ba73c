"""URLs of stores and of the Hub, and the patterns in them."""

import pytest

from batchrun.errors import JobError
from batchrun.remote.run_link import scratch_of
from batchrun.remote.urls import (
    StoreUrl,
    fixed_folder,
    hub_url,
    is_remote,
    is_store,
    name_of,
    name_pattern,
    store_url,
)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://b/a/c.jsonl", StoreUrl("s3", "b", "a/c.jsonl")),
        ("s3a://b/a/", StoreUrl("s3", "b", "a")),
        ("s3://b", StoreUrl("s3", "b", "")),
        ("s3://b/a?.jsonl", StoreUrl("s3", "b", "a?.jsonl")),
        ("s3://b/a?region=eu-west-1", StoreUrl("s3", "b", "a", "eu-west-1")),
        ("s3://anonymous@b/a", StoreUrl("s3", "b", "a", is_anonymous=True)),
        ("gcs://b/a", StoreUrl("gs", "b", "a")),
        ("az://c/a", StoreUrl("abfs", "c", "a")),
        ("abfss://c@x.dfs.core.windows.net/a", StoreUrl("abfs", "c@x.dfs.core.windows.net", "a")),
    ],
)
def test_urls_of_stores(text: str, url: StoreUrl) -> None:
    assert is_remote(text)
    assert is_store(text)
    assert store_url(text) == url
    assert store_url(url.full) == url


@pytest.mark.parametrize("text", ["a/b.jsonl", "s3:/b/a", "C:/a", "ftp://b/a", "-", "file:///a"])
def test_what_is_none(text: str) -> None:
    assert not is_remote(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3:///a", "names no bucket"),
        ("s3://*/a", "names no bucket"),
        ("s3://KEY:SECRET@b/a", "credentials"),
        ("s3://KEY@b/a", "credentials"),
        ("abfs://@x.dfs.core.windows.net/a", "names no container"),
        ("abfs://c:SECRET@x.dfs.core.windows.net/a", "credentials"),
        ("s3://b/a/../c/d", "empty parts"),
    ],
)
def test_urls_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as refused:
        store_url(text)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "dataset", "revision", "path"),
    [
        ("hf://datasets/o/n", "o/n", None, ""),
        ("hf://datasets/o/n/a/b.jsonl", "o/n", None, "a/b.jsonl"),
        ("hf://datasets/o/n@v1/a", "o/n", "v1", "a"),
        ("hf://datasets/o/n@refs/convert/parquet/a", "o/n", "refs/convert/parquet", "a"),
        ("hf://datasets/o/n@feature%2Fx/a", "o/n", "feature/x", "a"),
    ],
)
def test_urls_of_the_hub(text: str, dataset: str, revision: str | None, path: str) -> None:
    url = hub_url(text)
    assert (url.dataset, url.revision, url.path) == (dataset, revision, path)
    assert hub_url(str(url)) == url


@pytest.mark.parametrize(
    ("pattern", "folder", "matched", "others"),
    [
        ("a/*.jsonl", "a", ["a/b.jsonl"], ["a/b/c.jsonl", "a/b.json", "x/a/b.jsonl"]),
        ("a/**/*.gz", "a", ["a/b.gz", "a/b/c/d.gz"], ["b/c.gz"]),
        ("a/b[0-9]?.x", "a", ["a/b1z.x"], ["a/bz1.x", "a/b1/.x"]),
        ("**", "", ["a", "a/b"], []),
        ("a[!b].x", "", ["ac.x"], ["ab.x"]),
    ],
)
def test_patterns(pattern: str, folder: str, matched: list[str], others: list[str]) -> None:
    assert fixed_folder(pattern) == folder
    for name in matched:
        assert name_pattern(pattern).fullmatch(name), name
    for name in others:
        assert not name_pattern(pattern).fullmatch(name), name


def test_the_name_of_a_run_made_of_a_url() -> None:
    assert name_of("s3://b/in/prompts.jsonl") == "prompts.jsonl"
    assert name_of("s3://b") == "b"
    assert name_of("s3://b/*.jsonl") == ""
    assert name_of("hf://datasets/o/n") == "n"


def test_each_run_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    first, other = scratch_of("s3://b/runs/a"), scratch_of("s3://c/runs/a")
    assert first != other
    assert first.parent.as_posix() == "/state/batchrun"
    assert scratch_of("s3://b/runs/a/") == scratch_of("s3a://b/runs/a") == first
    assert scratch_of("s3://b/runs/a", "/data").parent.as_posix() == "/data"
    with pytest.raises(JobError, match="a folder in a bucket"):
        scratch_of("s3://b")
