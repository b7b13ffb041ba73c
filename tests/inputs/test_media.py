"""Images and documents of rows: bytes, `datasets`' structs, base64 text and paths."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError
from batchrun.inputs import media
from batchrun.inputs.media import content_type
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.sections import InputJob
from batchrun.records import BadRow, Request

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256))
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"
IMAGE = {"type": "input_image", "image_url": "{{ image | data_url }}"}
DOCUMENT = {"type": "input_file", "filename": "a", "file_data": "{{ image | file_data }}"}


def url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def job_of(part: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": [part]}]}


def prompts_of(path: Path, part: dict[str, Any] = IMAGE) -> PromptSet:
    made = InputJob(path=str(path))
    return PromptSet(find_source(made), made, job_of(part))


def rows_of(path: Path, part: dict[str, Any] = IMAGE) -> list[Any]:
    """What the part of each row holds, or what is wrong with the row."""
    prompts, found = prompts_of(path, part), []
    survey = prompts.survey(None)
    for row in prompts.requests(survey.layout, bytearray(survey.rows)):
        if isinstance(row, BadRow):
            found.append(row.message)
            continue
        made = json.loads(row.body)["input"][0]["content"][0]
        found.append(made.get("image_url") or made["file_data"])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and a document, and a secret beside it."""
    inner = tmp_path / "set"
    (inner / "photos").mkdir(parents=True)
    (inner / "photos" / "a.png").write_bytes(PNG)
    (inner / "b.jpg").write_bytes(JPEG)
    (inner / "c.pdf").write_bytes(PDF)
    (inner / ".hidden.png").write_bytes(PNG)
    (tmp_path / "above.png").write_bytes(PNG)
    return inner


def lines(folder: Path, *values: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"image": value}) + "\n" for value in values))
    return path


def test_images_of_parquet_are_bytes_and_structs_as_datasets_writes_them(tmp_path: Path) -> None:
    one = {"bytes": PNG, "path": "a.png"}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    views = pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()})
    kinds = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(PNG)))
    for kind, value in ((struct, one), (views, one), *((kind, PNG) for kind in kinds)):
        pq.write_table(pa.table({"image": pa.array([value], kind)}), tmp_path / "set.parquet")
        assert rows_of(tmp_path / "set.parquet") == [url(PNG, "image/png")], kind


def test_the_path_of_a_struct_counts_where_it_has_no_bytes(folder: Path) -> None:
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": None, "path": "b.jpg"}, {"bytes": PNG, "path": "b.jpg"}]
    pq.write_table(pa.table({"image": pa.array(images, struct)}), folder / "set.parquet")
    assert rows_of(folder / "set.parquet") == [url(JPEG, "image/jpeg"), url(PNG, "image/png")]


def test_lists_of_images_make_a_part_each(tmp_path: Path) -> None:
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [[{"bytes": PNG, "path": "a"}, {"bytes": JPEG, "path": "b"}]]
    pq.write_table(pa.table({"images": pa.array(images, pa.list_(struct))}), tmp_path / "s.parquet")
    part = {"type": "input_image", "image_url": "{{ images | map('data_url') | list }}"}
    assert rows_of(tmp_path / "s.parquet", part) == [
        [url(PNG, "image/png"), url(JPEG, "image/jpeg")]
    ]


def test_paths_are_relative_to_the_file_of_the_row_or_to_the_source(folder: Path) -> None:
    expected = [url(PNG, "image/png"), url(JPEG, "image/jpeg")]
    assert rows_of(lines(folder, "photos/a.png", "b.jpg")) == expected
    (folder / "rows.jsonl").unlink()
    lines(folder, "../photos/a.png", "b.jpg", name="meta/rows.jsonl")
    assert rows_of(folder) == expected
    lines(folder, "photos/a.png", "../b.jpg", name="meta/rows.jsonl")
    assert rows_of(folder) == expected


def test_nothing_above_the_source_is_read(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "above.png")
    absolute = str(folder / "b.jpg")
    rows = rows_of(
        lines(folder, "../above.png", "link.png", "/etc/hostname", ".hidden.png", absolute)
    )
    for message in rows[:4]:
        assert f"is hidden, or outside the source's folder {folder}" in message
    assert rows[4] == url(JPEG, "image/jpeg")
    # A folder that a link makes part of the source is one: its files are beside the row.
    linked = folder.parent / "linked"
    linked.mkdir()
    (linked / "a.png").write_bytes(PNG)
    lines(linked, "a.png", "../above.png")
    (folder / "rows.jsonl").unlink()
    (folder / "more").symlink_to(linked)
    rows = rows_of(folder)
    assert rows[0] == url(PNG, "image/png")
    assert "outside the source's folder" in rows[1]
    # The folder of the one file that is the source bounds it, whatever else is beside that.
    assert (
        "outside the source's folder"
        in rows_of(lines(folder, "../photos/a.png", name="meta/rows.jsonl"))[0]
    )


def test_what_is_no_image_is_a_bad_row_that_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty.png").touch()
    (folder / "noise.png").write_bytes(b"\0\1\2")
    values = [
        *("gone.png", "photos", "empty.png", "c.pdf", "noise.png", "https://example.org/a.png"),
        *(5, {"path": "gone.png"}, {"caption": "a"}, "a\0b", "x" * 5_000, None),
    ]
    rows = rows_of(lines(folder, *values))
    for said, message in zip(
        [
            f"no file `gone.png` in {folder}",
            "`photos` is not a file",
            "`empty.png` is empty",
            "`c.pdf` is not an image, by its content (application/pdf)",
            "`noise.png` is not an image, by its content (nothing known)",
            "`https://example.org/a.png` is a URL, which a template sends as it is",
            "5 is neither an image nor a document; give bytes",
            "no file `gone.png`",
            "{'caption': 'a'} is neither an image nor a document",
            "no file `a",
            "cannot be read (File name too long)",
            "the template's column `image` is null",
        ],
        rows,
        strict=True,
    ):
        assert said in message, (said, message)
        assert len(message) < 500
    monkeypatch.setattr(media, "MOST_BYTES", 200)
    for value in ("photos/a.png", base64.b64encode(PNG).decode()):
        assert "has 264 B; APIs take at most 200 B" in rows_of(lines(folder, value))[0]


def test_json_holds_bytes_as_base64_text(folder: Path) -> None:
    text = base64.b64encode(PNG).decode()
    wrapped = base64.encodebytes(PNG).decode()
    ready = url(JPEG, "image/jpeg")
    values = (text, wrapped, ready, {"bytes": text, "path": "a.png"})
    png = url(PNG, "image/png")
    assert rows_of(lines(folder, *values)) == [png, png, ready, png]
    assert rows_of(lines(folder, text, ready), DOCUMENT) == [png, ready]


def test_documents_are_sent_with_the_type_of_their_content(folder: Path) -> None:
    with zipfile.ZipFile(folder / "letter", "w") as word:
        word.writestr("[Content_Types].xml", "<x/>")
        word.writestr("word/document.xml", "<x/>")
    (folder / "notes.md").write_text("# Grüße")
    (folder / "noise").write_bytes(b"\0\1\xff")
    rows = rows_of(lines(folder, "c.pdf", "letter", "notes.md", "noise"), DOCUMENT)
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    assert [row.partition(";")[0] for row in rows] == [
        *("data:application/pdf", f"data:{office}", "data:text/plain"),
        "data:application/octet-stream",
    ]
    assert rows[0] == url(PDF, "application/pdf")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"GIF89a\1\0\1\0", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM\x46\0\0\0\0\0\0\0\x36", "image/bmp"),
        (b"BMW is a car", "text/plain"),
        (b"II*\0\x08\0\0\0", "image/tiff"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image/heic"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "application/octet-stream"),
        (b"\n%PDF-1.4", "application/pdf"),
        (b"{\\rtf1 a}", "application/rtf"),
        (b"PK\3\4broken", "application/octet-stream"),
        (b"a,b\n1,2\n", "text/plain"),
        (b"\xff\xfe\0", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_the_content_tells_the_type(content: bytes, kind: str) -> None:
    assert content_type(content) == kind


def test_an_empty_archive_is_an_archive() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("readme", "x")
    assert content_type(made.getvalue()) == "application/zip"


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changed_since_the_plan_is_not_sent(folder: Path, change: str) -> None:
    prompts = prompts_of(lines(folder, "photos/a.png"))
    survey = prompts.survey(None)
    image = folder / "photos" / "a.png"
    if change == "gone":
        image.unlink()
    else:
        image.write_bytes(PNG + b"!")
    with pytest.raises(InputError, match=r"rows\.jsonl:1: an image .* changed since the plan"):
        list(prompts.requests(survey.layout, bytearray(1)))


def test_the_hash_is_that_of_the_content(folder: Path) -> None:
    def hash_of(path: Path) -> str:
        prompts = prompts_of(path)
        first = prompts.survey(None).first
        assert isinstance(first, Request)
        return first.hash

    before = hash_of(lines(folder, "photos/a.png"))
    (folder / "photos" / "moved.png").write_bytes(PNG)
    assert hash_of(lines(folder, "photos/moved.png")) == before
    (folder / "photos" / "moved.png").write_bytes(PNG + b"!")
    assert hash_of(lines(folder, "photos/moved.png")) != before


def test_a_constant_path_is_read_for_each_row_and_not_by_the_template(folder: Path) -> None:
    part = {"type": "input_image", "image_url": "{{ 'b.jpg' | data_url }}"}
    assert rows_of(lines(folder, "x", "y"), part) == [url(JPEG, "image/jpeg")] * 2


def test_what_the_filters_make_counts_for_the_bound_of_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.inputs.sandbox.MAX_LETTERS", 10_000)
    part = {"type": "input_image", "image_url": "{{ (['b.jpg'] * 60) | map('data_url') | list }}"}
    assert "10,000 characters" in rows_of(lines(folder, "x"), part)[0]


def test_a_path_from_standard_input_has_no_folder(tmp_path: Path) -> None:
    copy = lines(tmp_path, "photos/a.png")
    made = InputJob(path="-")
    prompts = PromptSet(find_source(made, copy), made, job_of(IMAGE))
    assert "standard input has no folder" in prompts.survey(None).problems[0].message
