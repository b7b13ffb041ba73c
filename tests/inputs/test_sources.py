import os
from pathlib import Path

import pytest

from batchrun.errors import InputError
from batchrun.inputs.prompt_set import find_source
from batchrun.job.sections import InputJob


def names(path: Path | str, **job: str) -> list[tuple[str, str]]:
    source = find_source(InputJob(path=str(path), **job))  # type: ignore[arg-type] # one key
    return [(file.name, file.kind) for file in source.files]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.NDJSON.ZST", "jsonl"),
        ("a.parquet", "parquet"),
    ],
)
def test_the_ending_decides_the_format(tmp_path: Path, name: str, kind: str) -> None:
    touch(tmp_path, name)
    assert names(tmp_path / name) == [(name, kind)]


def test_an_unknown_ending_needs_a_format(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(InputError, match="Say --format jsonl or --format parquet"):
        names(tmp_path / "a.txt")
    assert names(tmp_path / "a.txt", format="jsonl") == [("a.txt", "jsonl")]


def test_a_folder_gives_its_prompt_sets_sorted_and_nothing_else(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.jsonl",
        "a.parquet",
        "deep/c.jsonl.gz",
        "README.md",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "runs/one/run.json",
        "runs/one/responses/part.parquet",
    )
    assert names(tmp_path) == [
        ("a.parquet", "parquet"),
        ("b.jsonl", "jsonl"),
        ("deep/c.jsonl.gz", "jsonl"),
    ]
    assert names(tmp_path, format="parquet") == [("a.parquet", "parquet")]


def test_a_glob_names_files_from_where_it_is_no_longer_fixed(tmp_path: Path) -> None:
    touch(tmp_path, "x/2.jsonl", "x/1.jsonl", "y/3.jsonl", "x/note.txt")
    assert names(tmp_path / "x" / "*") == [("1.jsonl", "jsonl"), ("2.jsonl", "jsonl")]
    assert [name for name, _ in names(f"{tmp_path}/**/*.jsonl")] == [
        "x/1.jsonl",
        "x/2.jsonl",
        "y/3.jsonl",
    ]
    assert names(f"{tmp_path}/x/*.txt", format="jsonl") == [("note.txt", "jsonl")]


def test_a_file_with_several_names_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "v3.jsonl", "lang=de/v3.jsonl", "x/v3.jsonl")
    (tmp_path / "latest.jsonl").symlink_to("v3.jsonl")
    (tmp_path / "x" / "hard.jsonl").hardlink_to(tmp_path / "x" / "v3.jsonl")
    # Its rows are others: they have another column.
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "v3.jsonl").symlink_to("../lang=de/v3.jsonl")
    found = ["lang=de/v3.jsonl", "lang=en/v3.jsonl", "v3.jsonl", "x/hard.jsonl"]
    for spec in (str(tmp_path), f"{tmp_path}/**/*.jsonl"):
        source = find_source(InputJob(path=spec))
        assert [file.name for file in source.files] == found
        (warning,) = source.warnings
        assert warning == (
            f"{spec}: 2 names left out, since each file is read once "
            "(latest.jsonl is v3.jsonl, x/v3.jsonl is x/hard.jsonl)"
        )
    # A glob finds a file in more than one way.
    source = find_source(InputJob(path=f"{tmp_path}/**/**/v3.jsonl"))
    assert [file.name for file in source.files] == [*found[:3], "x/v3.jsonl"]
    assert source.warnings == ()
    (file,) = find_source(InputJob(path=str(tmp_path / "latest.jsonl"))).files
    assert file.name == "latest.jsonl"


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].jsonl")
    assert names(tmp_path / "a[1].jsonl") == [("a[1].jsonl", "jsonl")]


def test_a_source_that_is_missing_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "empty/README.md")
    for path, message in (
        (tmp_path / "gone.jsonl", "no such file"),
        (tmp_path / "empty", "no prompt set in this folder"),
        (tmp_path / "*.jsonl", "no file matches"),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            names(path)


def test_a_pipe_is_refused_since_it_can_be_read_once_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="more than once"):
        names(tmp_path / "a.jsonl")


def test_standard_input_is_read_from_its_copy(tmp_path: Path) -> None:
    copy = tmp_path / "stdin"
    source = find_source(InputJob(path="-"), copy)
    assert [(file.path, file.name, file.kind) for file in source.files] == [(copy, "-", "jsonl")]
    with pytest.raises(InputError, match="not stored"):
        find_source(InputJob(path="-"))
