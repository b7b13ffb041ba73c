"""Files as public datasets have them: the commands of the documentation show the first request."""

import json
import re
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.doc_examples import section
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]

QUESTION, ANSWER = "What is an index?", "An index is a table of contents."
_PARAMETERS = {
    "kind": {"description": "of a thing", "type": "str, optional", "default": "all"},
    "tags": {"description": "any", "type": "List[str]"},
}
_TOOLS = [{"name": "list.things", "description": "Lists things.", "parameters": _PARAMETERS}]
_CHAT = {
    "model": "gpt-4.1",
    "messages": [{"role": "user", "name": "ann", "content": QUESTION}],
    "max_tokens": 50,
    "seed": 7,
}


def png() -> bytes:
    """A red picture of eight by eight pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff\0\0" * 8) * 8)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small files of each kind."""

    def write(name: str, value: object) -> None:
        (tmp_path / name).write_text(json.dumps(value, indent=1), encoding="utf-8")

    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    write("sharegpt.json", [{"id": "a_0", "conversations": turns}])
    write("alpaca_data.json", [{"instruction": QUESTION, "input": "", "output": ANSWER}])
    calls = [{"name": "list.things", "arguments": {"kind": "old"}}]
    row = {"id": 0, "query": QUESTION, "answers": json.dumps(calls), "tools": json.dumps(_TOOLS)}
    write("xlam_60k.json", [row])
    for lang in ("de", "en"):
        part = tmp_path / f"reviews/lang={lang}/day=2026-01-01/part-0.snappy.parquet"
        part.parent.mkdir(parents=True)
        texts = [QUESTION, ANSWER]
        pq.write_table(
            pa.table({"review_id": [f"{lang}{n}" for n in range(2)], "text": texts}), part
        )
    (tmp_path / "reviews/_SUCCESS").touch()
    photos = [{"bytes": png(), "path": "a.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"id": ["a"], "title": ["a square"], "image": pa.array(photos, kind)})
    pq.write_table(table, tmp_path / "photos.parquet")
    images = section("prompt-sets", "Images and documents")
    (job,) = re.findall(r"^```toml\n(.*?)^```", images, re.DOTALL | re.MULTILINE)
    (tmp_path / "captions.toml").write_text(job, encoding="utf-8")
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": _CHAT}
    (tmp_path / "batch_input.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return tmp_path


_ROW = re.compile(r"^\| (.+?) \| `batchrun (.+)` \|$", re.MULTILINE)
_COMMANDS = dict(_ROW.findall(section("prompt-sets", "Public datasets")))
_USER = {"role": "user", "content": QUESTION}
_FIRST: dict[str, Any] = {
    "ShareGPT": {"input": [_USER]},
    "Alpaca": {"input": QUESTION},
    "tools as in xLAM": {"input": QUESTION},
    "a folder in a hive layout": {"input": f"Translate from de: {QUESTION}"},
    "images as `datasets` writes them": {},
    "a chat Batch file": {"input": [_USER], "model": "gpt-4.1", "max_output_tokens": 50},
}
_SAID = {
    "ShareGPT": "carried: id, conversations",
    "Alpaca": "carried: output (as output_input)",
    "tools as in xLAM": '"list_things" for "list.things"',
    "a folder in a hive layout": "carried: review_id, text, lang, day",
    "images as `datasets` writes them": "carried: id, title\n",
    "a chat Batch file": "name (1 row): fields of chat messages",
}


@pytest.mark.parametrize("kind", _FIRST)
def test_each_documented_command_shows_the_first_request(
    kind: str, folder: Path, batchrun: Run
) -> None:
    done = batchrun(*shlex.split(_COMMANDS[kind]))
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert {name: body.get(name) for name in _FIRST[kind]} == _FIRST[kind]
    assert body["model"]
    assert _SAID[kind] in done.stderr
    if "images" in kind:
        assert body["input"][0]["content"][1]["image_url"].startswith("data:image/png;base64,")
    assert not list(folder.glob("runs/*"))


def test_an_answer_that_is_sent_along_is_left_out_as_the_warning_says(
    folder: Path, batchrun: Run
) -> None:
    done = batchrun("run", "sharegpt.json", "--model", "m", "--dry-run")
    (template,) = re.findall(r"--prompt '(.+?)'", done.stderr)
    done = batchrun("run", "sharegpt.json", "--model", "m", "--prompt", template, "--dry-run")
    assert json.loads(done.stdout)["input"] == [_USER]
    assert (folder / "sharegpt.json").exists()


def test_a_folder_of_images_with_their_captions_is_read(folder: Path, batchrun: Run) -> None:
    images = folder / "images"
    images.mkdir()
    (images / "0.png").write_bytes(png())
    (images / "metadata.jsonl").write_text('{"file_name": "0.png", "title": "a"}\n')
    job = (folder / "captions.toml").read_text(encoding="utf-8")
    job = job.replace("photos.parquet", "images").replace("{{ image |", "{{ file_name |")
    (folder / "captions.toml").write_text(job.replace('"id", ', ""), encoding="utf-8")
    done = batchrun("run", "captions.toml", "--dry-run")
    assert "data:image/png;base64," in done.stdout, done.stderr


def test_images_that_would_be_sent_as_text_are_named(folder: Path, batchrun: Run) -> None:
    words = ("run", "photos.parquet", "--model", "m", "--dry-run", "--prompt")
    done = batchrun(*words, "What is on {{ image }}?")
    assert done.returncode == 2
    assert 'image_url = "{{ image | data_url }}"' in done.stderr
    done = batchrun(*words, "What is on {{ image | data_url }}?")
    assert done.returncode == 0
    assert "the model reads it as text" in done.stderr
    assert "the model reads" not in batchrun("run", "captions.toml", "--dry-run").stderr
    assert (folder / "photos.parquet").exists()


def _csv(folder: Path) -> None:
    (folder / "a.csv").write_text('id,q\n007,"one, two"\n008,three\n', encoding="utf-8")


def _saved(folder: Path) -> None:
    """As `Dataset.save_to_disk` writes it."""
    table = pa.table({"id": ["007", "008"], "q": ["one, two", "three"]})
    (folder / "saved").mkdir()
    path = folder / "saved/data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (folder / "saved" / name).write_text('{"features": {}}', encoding="utf-8")


def _feather(folder: Path) -> None:
    table = pa.table({"id": ["007", "008"], "q": ["one, two", "three"]})
    path = folder / "it's.feather"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as stream:
        stream.write_table(table)


@pytest.mark.parametrize(
    ("write", "source", "then"),
    [
        (_csv, "a.csv", "a.csv.parquet"),
        (_saved, "saved", "saved"),
        (_feather, "it's.feather", "it's.feather.parquet"),
    ],
)
def test_what_is_not_read_is_converted_as_the_message_says(
    write: Callable[[Path], None], source: str, then: str, tmp_path: Path, batchrun: Run
) -> None:
    write(tmp_path)
    words = ("--model", "m", "--prompt", "{{ q }}", "--dry-run")
    done = batchrun("run", source, *words)
    assert done.returncode == 2
    (command,) = re.findall(r"python (-c .+)\nand give", done.stderr)
    typed = [sys.executable, *shlex.split(command)]
    subprocess.run(typed, cwd=tmp_path, check=True, timeout=HANG_S)
    done = batchrun("run", then, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"model": "m", "input": "one, two"}
    assert "2 to send" in done.stderr
