"""Run directories as earlier releases left them: read for ever, finished without paying twice."""

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow.parquet as pq
import pytest

from batchrun.store import reading
from tests.processes import ForkServer
from tests.runs import read_record, standing_rows
from tests.store.crashes import read_tree
from tests.torture.server import Server

RELEASED = Path(__file__).parent / "schema_1"
FACTS: dict[str, dict[str, Any]] = json.loads((RELEASED / "facts.json").read_text())
RENAMED = {
    "api": "api_input",
    "embedding": "embedding_input",
    "embedding_input": "embedding_input_2",
    "Turn_Count": "Turn_Count_input",
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a fixture, as the release made it."""

    def make(name: str) -> Path:
        shutil.copytree(RELEASED / name, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def batchrun(fork_server: ForkServer, environment: dict[str, str]) -> Run:
    """`batchrun ...` in a folder, to its end."""
    return lambda folder, *words: fork_server.run(folder, environment, *words)


@pytest.fixture
def server(tmp_path: Path, environment: dict[str, str]) -> Iterator[Server]:
    one = Server(tmp_path, environment, "--latency", "0")
    yield one
    one.close()


def _not_ok(run: Path) -> set[str]:
    return {key for key, (ok, _) in standing_rows(run).items() if not ok}


@pytest.mark.parametrize("name", FACTS)
def test_it_is_read_reported_exported_and_verified_and_no_file_changes(
    copy: Callable[[str], Path], batchrun: Run, name: str
) -> None:
    folder, facts = copy(name), FACTS[name]
    before = read_tree(folder / "run")
    stand = json.loads(batchrun(folder, "status", "run", "--json").stdout)
    assert (stand["rows"], stand["left"], stand["ok"]) == (
        facts["rows"],
        len(facts["left"]),
        facts["ok"],
    )
    proved = batchrun(folder, "verify", "run")
    assert proved.returncode == 0, proved.stdout
    report = batchrun(folder, "report", "run")
    assert report.returncode == 0, report.stderr
    cost = batchrun(folder, "cost", "run")
    assert cost.returncode == 0, cost.stderr
    for custom_id in (*facts["in_parts"][:1], *facts["in_journal"][:1]):
        shown = batchrun(folder, "show", "run", custom_id)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith(f"{custom_id}: row ")
        (row,) = reading.find_row(folder / "run", custom_id)
        assert "reasoning_text" not in row  # the columns are those of its schema
    for form in ("jsonl", "csv", "batch"):
        done = batchrun(folder, "export", "run", f"out.{form}", "--format", form)
        assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    names = [line["custom_id"] for line in lines]
    assert sorted(names) == sorted([*facts["complete"], *facts["gone"]])
    assert not {"reasoning_text", "endpoint_name"} & set(lines[0])
    assert read_tree(folder / "run") == before


@pytest.mark.parametrize("name", [name for name in FACTS if name != "background"])
def test_it_is_finished_and_only_the_remaining_rows_are_sent(
    copy: Callable[[str], Path], batchrun: Run, server: Server, name: str
) -> None:
    folder, facts = copy(name), FACTS[name]
    done = batchrun(folder, "run", "job.toml", "--base-url", server.base_url)
    assert done.returncode == (4 if facts["not_ok"] else 0), done.stderr
    assert server.counts().requests == len(facts["left"])
    there = standing_rows(folder / "run").keys()
    assert there == {*facts["complete"], *facts["left"], *facts["gone"]}
    assert _not_ok(folder / "run") == set(facts["not_ok"])
    record = read_record(folder / "run")
    assert record["state"] == "finished"
    assert record["totals"]["rows"] == facts["rows"]
    is_untouched = not facts["left"] and not facts["in_journal"]  # no new row
    assert record["schema_version"] == (1 if is_untouched else 2)
    _check_parts(folder / "run", schema=1 if is_untouched else 2)
    proved = batchrun(folder, "verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert not list((folder / "run").glob("journal/*"))
    again = batchrun(folder, "run", "job.toml", "--base-url", server.base_url)
    assert again.returncode == done.returncode
    assert server.counts().requests == len(facts["left"])


def _check_parts(run: Path, schema: int) -> None:
    for part in [*run.glob("responses/*.parquet"), *run.glob("tool_calls/*.parquet")]:
        metadata = pq.read_metadata(part).metadata
        assert metadata[b"batchrun.schema_version"] == str(schema).encode(), part
        assert schema == 1 or not part.name.endswith("-other.parquet")


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts["not_ok"]])
def test_its_failed_rows_are_sent_again_with_their_attempts_going_along(
    copy: Callable[[str], Path], batchrun: Run, server: Server, name: str
) -> None:
    folder, facts = copy(name), FACTS[name]
    before = standing_rows(folder / "run")
    failed = {key for key, why in facts["not_ok"].items() if why not in ("truncated", "refusal")}
    done = batchrun(folder, "run", "job.toml", "--retry-failed", "--base-url", server.base_url)
    assert done.returncode in (0, 4), done.stderr
    assert server.counts().requests == len(facts["left"]) + len(failed)
    now = standing_rows(folder / "run")
    for key, (_, attempts) in before.items():
        assert now[key][1] == attempts + (key in failed), key
    assert set(facts["not_ok"]) - failed <= _not_ok(folder / "run") <= set(facts["not_ok"])
    proved = batchrun(folder, "verify", "run")
    assert proved.returncode == 0, proved.stdout
    _check_parts(folder / "run", schema=2)


def test_carried_columns_that_schema_2_renames_have_their_values(
    copy: Callable[[str], Path], batchrun: Run, server: Server
) -> None:
    folder = copy("renamed")
    carried = ", ".join(f'"{name}"' for name in RENAMED)
    parts = f"{folder}/run/responses/*.parquet"
    before = _asked(f"SELECT {carried} FROM '{parts}' ORDER BY row")  # noqa: S608
    done = batchrun(folder, "run", "job.toml", "--base-url", server.base_url)
    assert done.returncode == 4, done.stderr
    carried = ", ".join(f'"{name}"' for name in RENAMED.values())
    after = _asked(f"SELECT {carried} FROM '{parts}' ORDER BY row")  # noqa: S608
    assert after[: len(before)] == before
    assert after == [(f"api-{n}", f"text {n}", n, 2 * n) for n in range(14)]
    own = _asked(f"SELECT DISTINCT api, embedding, turn_count FROM '{parts}'")  # noqa: S608
    assert own == [(None, None, None)]


def _asked(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


class _Background(BaseHTTPRequestHandler):
    """Knows the responses that were begun, answers new requests at once, and counts these."""

    known: ClassVar[frozenset[str]] = frozenset()
    asked: ClassVar[list[str]]  # ids, by GET
    created: ClassVar[list[str]]  # ids, by POST
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        response_id = self.path.rpartition("/")[2]
        self.asked.append(response_id)
        self._answer(response_id, 200 if response_id in self.known else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.created.append(f"resp_new_{len(self.created)}")
        self._answer(self.created[-1], 200)

    def _answer(self, response_id: str, status: int) -> None:
        item = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": f"of {response_id}", "annotations": []}],
        }
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        body = json.dumps(
            {
                "id": response_id,
                "object": "response",
                "status": "completed",
                "model": "gpt-4.1",
                "output": [item],
                "usage": usage,
            }
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_background_work_that_schema_1_began_is_taken_up(
    copy: Callable[[str], Path], batchrun: Run
) -> None:
    folder, facts = copy("background"), FACTS["background"]

    class Handler(_Background):
        known = frozenset(facts["open"].values())
        asked: ClassVar[list[str]] = []
        created: ClassVar[list[str]] = []

    with _serving(Handler) as base_url:
        done = batchrun(folder, "run", "job.toml", "--base-url", base_url)
    assert done.returncode == 0, done.stderr
    assert sorted(Handler.asked) == sorted(facts["open"].values())
    assert len(Handler.created) == len(facts["left"]) - len(facts["open"])
    assert len(standing_rows(folder / "run")) == facts["rows"]
    proved = batchrun(folder, "verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert not list((folder / "run" / "journal").iterdir())


def test_a_rewritten_run_is_refused_by_the_release_that_wrote_it(
    copy: Callable[[str], Path], batchrun: Run, server: Server
) -> None:
    """It reads the schema first, and would take rows for unsent otherwise."""
    folder = copy("killed")
    assert batchrun(folder, "run", "job.toml", "--base-url", server.base_url).returncode == 0
    assert read_record(folder / "run")["schema_version"] == 2
    text = (folder / "run" / "run.json").read_text()
    newer = text.replace('"schema_version": 2', '"schema_version": 3')
    (folder / "run" / "run.json").write_text(newer)
    for words in (
        ("run", "job.toml", "--simulate"),
        ("status", "run"),
        ("verify", "run"),
        ("show", "run", "q"),
    ):
        refused = batchrun(folder, *words)
        assert refused.returncode == 2, refused.stderr
        assert "written by a newer batchrun (schema 3, this one knows 2)" in refused.stderr
