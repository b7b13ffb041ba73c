"""The files that a source names, found by their names alone, and their rows in order.

A source is a file, a folder or a glob, on this machine, in a store or on the Hub, or the copy of
standard input. Files are sorted by name, so rows keep their numbers. A file that changes between
two passes, or during one, is an error.
"""

import glob
import hashlib
import os
import select
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

import pyarrow.parquet as pq
from msgspec import Struct, structs

from batchrun.errors import InputError, JobError, StoreError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import as_utf8
from batchrun.formats.printable import cut, one_line
from batchrun.inputs import jsonl, parquet
from batchrun.inputs.rows import FilePart, FileRows, FileSpan, RowOffsets, SourceFile, SourceRow
from batchrun.job.sections import STDIN, InputJob
from batchrun.records import joined_key
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.part_stubs import read_stub
from batchrun.remote.remote_files import Found, RemoteFile, find_files
from batchrun.remote.urls import has_glob, is_remote, is_store
from batchrun.store.columns import as_schema, response_schema
from batchrun.store.files import RESPONSES, WRITER, FileId, storing, unfinished_name
from batchrun.store.parts import new_files, read_part, without, write_parts
from batchrun.store.reading import RUN_FILE, keys_vary, read_record, run_folder
from batchrun.store.snapshot import Snapshot, read_snapshot

_JSONL = (".jsonl", ".ndjson", ".json")
_KNOWN = ".jsonl, .ndjson, .json (also with .gz, .zst, .bz2 or .xz) and .parquet"
# What turns files of other kinds, or those in a folder, into Parquet. CSV says no types: text.
_CSV = 'duckdb.read_csv(str(f), all_varchar=True).write_parquet(f"{f}.parquet")'
_ARROW = (
    'pq.write_table((pa.ipc.open_file if f.read_bytes()[:6] == b"ARROW1" else pa.ipc.open_stream)'
    '(pa.memory_map(str(f))).read_all(), f"{f}.parquet")'
)
_CONVERSIONS = {
    **dict.fromkeys((".csv", ".tsv"), ("duckdb", _CSV)),
    **dict.fromkeys((".arrow", ".feather"), ("pyarrow as pa, pyarrow.parquet as pq", _ARROW)),
}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_SHOWN = 5  # names
_CHUNK = 1024 * 1024
_CHECK_EVERY_S = 0.1
# Parts of a row group: to reach one, what stands before it in the group is decoded too.
_PARTS_OF_GROUP = 16

Stamp = tuple[int, int]  # size and time
AnyPath = TypeVar("AnyPath", bound=PurePath)
Check = Callable[[], None]  # called while standard input is awaited; what it raises ends the wait


class Source(Struct, frozen=True):
    """The files of a prompt set, in the order of their rows."""

    spec: str  # as asked for
    files: tuple[SourceFile, ...]
    warnings: tuple[str, ...] = ()  # what of it is passed over
    # Of a run directory: the columns that are carried unless the job lists others.
    carry: tuple[str, ...] | None = None
    temporary: tempfile.TemporaryDirectory[str] | None = None  # deleted with the source
    commit: str | None = None  # of a data set of the Hub


class SourceReader:
    """Reads a source's rows. Remembers each file's size, time and number of rows."""

    def __init__(self, source: Source, wrapped: jsonl.Wrapped | None = None) -> None:
        self.files, self._wrapped = source.files, wrapped
        self.stamps: dict[int, Stamp] = {}
        self.offsets: dict[int, RowOffsets] | None = None  # of each file, where they are noted
        self._counts: dict[int, int] = {}  # rows of a file that was read to its end

    def rows(
        self, use: parquet.ColumnUse, complete: bytearray | None = None
    ) -> Iterator[SourceRow]:
        """All rows, or those that `complete` does not mark, in order. Raises `InputError`."""
        row = 0
        last = None if complete is None else complete.rfind(0)
        for index, file in enumerate(self.files):
            if last is not None and row > last:
                return
            end = row + self._counts.get(index, 0)
            if row < end and complete is not None and complete.find(0, row, end) < 0:
                row = end
                continue
            noted = None
            if self.offsets is not None and complete is None:
                noted = self.offsets[index] = RowOffsets()
            with self._held(index):
                first = row
                row = yield from self._file_rows(file, row, complete, use, noted=noted)
            if last is None or row <= last:
                self._counts[index] = row - first

    def file_spans(self) -> Iterator[FileSpan]:
        """How each file is read in parts, once offsets were noted. Raises `InputError`."""
        for index, (file, first, rows) in enumerate(self.spans()):
            if file.kind == "parquet":
                least = -(-parquet.largest_group(file) // _PARTS_OF_GROUP)
                yield FileSpan(index, first, rows, max(least, 1))
                continue
            offsets = (self.offsets or {}).get(index)
            can_begin = offsets is not None and offsets.are_whole(rows)
            yield FileSpan(index, first, rows, *((1, offsets) if can_begin else (max(rows, 1),)))

    def part(
        self, part: FilePart, use: parquet.ColumnUse, complete: bytearray
    ) -> Iterator[SourceRow]:
        """The rows of a part of a file that `complete`, marks of this part, does not mark.

        Raises `InputError`.
        """
        marks = bytearray(b"\1") * part.skipped + complete
        before = part.first - part.skipped
        begin = part.offset, part.line
        with self._held(part.file):
            for row in self._file_rows(self.files[part.file], 0, marks, use, begin=begin):
                row.row += before
                yield row

    def _file_rows(
        self,
        file: SourceFile,
        first: int,
        complete: bytearray | None,
        use: parquet.ColumnUse,
        **place: Any,
    ) -> FileRows:
        """The rows of a file; `place`: what a reader of JSON is told about places in it."""
        if file.is_keyed:
            return _changed(parquet.read_rows(file, first, complete, use), _name_by_key)
        if file.kind == "parquet":
            return parquet.read_rows(file, first, complete, use)
        found = jsonl.read_rows(file, first, complete, self._wrapped, **place)
        return _with_partitions(file, found) if file.partitions else found

    @contextmanager
    def _held(self, index: int) -> Iterator[None]:
        """The file is open, so that it is the same at the end. Raises `InputError`."""
        path = self.files[index].path
        try:
            handle = path.open("rb") if isinstance(path, Path) else None
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check the path and its rights"
            ) from error
        with handle or nullcontext():
            self._check_unchanged(index, handle)
            yield
            self._check_unchanged(index, handle)

    def spans(self) -> Iterator[tuple[SourceFile, int, int]]:
        """Each file with its first row and how many it has, once all were read to their ends."""
        first = 0
        for index, file in enumerate(self.files):
            yield file, first, self._counts[index]
            first += self._counts[index]

    def _check_unchanged(self, index: int, handle: BinaryIO | None) -> None:
        path = self.files[index].path
        if handle is not None:
            stat = os.fstat(handle.fileno())
            stamp = (stat.st_size, stat.st_mtime_ns)
        elif isinstance(path, RemoteFile):
            try:
                stamp = path.stamp()
            except (JobError, RemoteError) as error:
                raise InputError(str(error)) from error
            self.stamps.setdefault(index, (path.size, path.written_at))
        if self.stamps.setdefault(index, stamp) != stamp:
            raise InputError(
                f"{path}: changed while it was being read; leave the input as it "
                "is during a run, then give the same command again"
            )


def _changed(rows: FileRows, change: Callable[[dict[str, Any]], None]) -> FileRows:
    """The rows, the columns of each as `change` leaves them."""
    while True:
        try:
            row = next(rows)
        except StopIteration as end:
            number: int = end.value
            return number
        if row.data is not None:
            change(row.data)
        yield row


def _name_by_key(columns: dict[str, Any]) -> None:
    """The name of a run's row says sample and variant too."""
    key = (columns["custom_id"], columns["sample"], columns.get("variant"))
    columns["custom_id"] = joined_key(key)


def _with_partitions(file: SourceFile, rows: FileRows) -> FileRows:
    """The rows with the columns that folders give, unless they have their own."""

    def add(columns: dict[str, Any]) -> None:
        for name, value in file.partitions:
            columns.setdefault(name, value)

    return _changed(rows, add)


def find_source(input_job: InputJob, stdin_copy: Path | None = None) -> Source:
    """The files that `input.path` names; `stdin_copy` is the copy of standard input.

    Raises `InputError` where there are none; for a run directory also `JobError`, `StoreError`.
    """
    spec, kind = input_job.path, input_job.format
    if spec == STDIN:
        if stdin_copy is None:
            raise InputError("standard input was not stored; give a file, or - with -o DIR")
        copy = SourceFile(path=stdin_copy, name=STDIN, kind=kind or "jsonl")
        return Source(spec=spec, files=(copy,))
    if is_remote(spec):
        return _remote_source(spec, kind)
    path = Path(spec)
    found: Iterable[Path] = ()
    passed_over: list[Path] = []
    linked: list[str] = []
    base = path
    try:
        if path.is_dir():
            if (path / RUN_FILE).is_file():
                return _run_source(spec, path)
            found = _without_descriptions(_walk(path, passed_over), kind, passed_over)
            missing = f"no prompt set in this folder; it would be a file ending in {_KNOWN}"
        elif path.exists():
            if not path.is_file():
                raise InputError(
                    f"{spec}: not a regular file; a prompt set is read more than once, so save it, "
                    "or give - to read standard input"
                )
            file = SourceFile(path=path, name=as_utf8(path.name), kind=kind or _kind_of(path) or "")
            if file.kind:
                return Source(spec=spec, files=(file,))
            missing = _conversion(spec, path, [path]) or (
                f"the ending says nothing about the format; known are {_KNOWN}. Say --format jsonl "
                "or --format parquet (format in [input])"
            )
        elif glob.has_magic(spec):
            found = map(Path, glob.glob(spec, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
            missing = (
                f"no file matches; check the pattern. Files must end in {_KNOWN}, or say --format "
                "jsonl or --format parquet (format in [input])"
            )
        else:
            missing = "no such file; check the path"
        any_kind = kind if glob.has_magic(spec) and not path.exists() else None
        files = _sorted_files(found, base, kind, any_kind, passed_over, linked)
    except OSError as error:
        raise InputError(f"{spec}: cannot be read ({error.strerror}); check the path") from error
    if not files:
        raise InputError(f"{spec}: {_conversion(spec, base, passed_over) or missing}")
    below = [path.relative_to(base) for path in passed_over]
    warnings = _passed_over(spec, below) + _linked(spec, linked)
    return Source(spec=spec, files=files, warnings=warnings)


def without_folder(source: Source) -> Source:
    """The same files, wherever a process is; they last as long as the first source."""
    files = [
        structs.replace(file, path=file.path.absolute()) if isinstance(file.path, Path) else file
        for file in source.files
    ]
    return structs.replace(source, files=tuple(files), warnings=(), temporary=None)


def _remote_source(spec: str, kind: str | None) -> Source:
    """The files of a store or of the Hub. Raises `JobError`, `InputError`."""
    found = find_files(spec)
    if is_store(spec) and not has_glob(spec) and _has_record(found):
        with run_folder(spec) as folder:
            return _run_source(spec, folder)
    by_name: dict[PurePath, RemoteFile] = {
        PurePosixPath(as_utf8(one.below(found.base))): one for one in found.files
    }
    is_glob = not found.is_file and has_glob(spec)
    any_kind = kind if found.is_file or is_glob else None
    passed_over: list[PurePath] = []
    names: list[PurePath] = [name for name in by_name if not _is_hidden(name)]
    if not found.is_file:
        runs = {name.parent for name in names if name.name == RUN_FILE and name.parent.parts}
        passed_over += sorted(runs)
        names = [name for name in names if runs.isdisjoint(name.parents)]
        if not is_glob:
            names = list(_without_descriptions(names, kind, passed_over))
    files = []
    for name in names:
        known = any_kind or _kind_of(name)
        if known is None or kind not in (None, known):
            passed_over.append(name)
        else:
            files.append(SourceFile(by_name[name], str(name), known))
    if not files:
        what = "only other files" if found.files else "nothing of this name"
        raise InputError(
            f"{spec}: no prompt set there ({what}); it would be files ending in {_KNOWN}, or say "
            "--format jsonl or --format parquet (format in [input])"
        )
    try:
        by_name[PurePosixPath(files[0].name)].try_out()
    except RemoteError as error:
        raise InputError(str(error)) from error
    return Source(
        spec=spec,
        files=_with_folders_as_columns(sorted(files, key=lambda file: file.name)),
        warnings=_passed_over(spec, passed_over),
        commit=found.commit,
    )


def _has_record(found: Found) -> bool:
    return any(one.below(found.base) == RUN_FILE for one in found.files)


def _is_hidden(name: PurePath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _conversion(spec: str, base: Path, paths: list[Path]) -> str | None:
    """What to type where files of another kind are given; None where none of them is known."""
    for path in paths:
        ending = PurePath(_unpacked_name(path)).suffix
        if ending in _CONVERSIONS:
            library, write = _CONVERSIONS[ending]
            whole = ending if path.suffix.lower() == ending else f"{ending}{path.suffix}"
            found = f'(p.rglob("*{whole}") if p.is_dir() else [p])'
            program = (
                f"import sys, pathlib, {library}; p = pathlib.Path(sys.argv[1]); "
                f"[{write} for f in {found}]"
            )
            then = f"{spec}.parquet" if path == base else "the folder, or the .parquet files in it"
            return (
                f"{ending} is not read; write it as Parquet: python -c {shlex.quote(program)} "
                f"{shlex.quote(str(base))}\nand give {then}"
            )
    return None


def _kind_of(path: PurePath) -> str | None:
    name = _unpacked_name(path)
    if path.name.lower().endswith(".parquet"):
        return "parquet"
    return "jsonl" if name.endswith(_JSONL) else None


def _unpacked_name(path: PurePath) -> str:
    name = path.name.lower()
    for ending in jsonl.COMPRESSIONS:
        name = name.removesuffix(ending)
    return name


def _without_descriptions(
    paths: Iterable[AnyPath], kind: str | None, passed_over: list[AnyPath]
) -> list[AnyPath]:
    """A `.json` beside files of another ending describes them, such as `dataset_info.json`."""
    files = list(paths)
    known = [path for path in files if _kind_of(path) in ({kind} if kind else {"jsonl", "parquet"})]
    plain = {path for path in known if _unpacked_name(path).endswith(".json")}
    of_datasets = any(path.suffix == ".arrow" for path in files)  # whose other files are .json
    if not plain or (len(plain) == len(known) and not of_datasets):
        return files
    passed_over += sorted(plain)
    return [path for path in files if path not in plain]


def _sorted_files(
    paths: Iterable[Path],
    base: Path,
    kind: str | None,
    any_kind: str | None,
    passed_over: list[Path],
    linked: list[str],
) -> tuple[SourceFile, ...]:
    """Those of the paths that are files of this format, or of a known one; names from `base` on.

    `any_kind`: the format of files whose endings say nothing. A file that has several names (links,
    hard links, a glob that finds it twice) is read once, or its rows would be paid for as often;
    `linked` gets the other names. Under folders that give it other columns it has other rows.
    """
    files: dict[tuple[object, ...], SourceFile] = {}
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        known = any_kind or _kind_of(path)
        if known is None or kind not in (None, known) or not path.is_file():
            if not path.is_dir():
                passed_over.append(path)
            continue
        name, stat = as_utf8(path.relative_to(base).as_posix()), path.stat()
        key = (stat.st_dev, stat.st_ino, *_partitions(name).items())
        first = files.setdefault(key, SourceFile(path, name, known))
        if first.name != name:
            linked.append(f"{cut(one_line(name), 80)} is {cut(one_line(first.name), 80)}")
    return _with_folders_as_columns(sorted(files.values(), key=lambda file: file.name))


def _with_folders_as_columns(files: list[SourceFile]) -> tuple[SourceFile, ...]:
    """With the columns of a hive layout: `lang=de/year=2024/a.parquet` has two.

    Values of a column are integers where all are, else text, or null.
    """
    if not any("=" in file.name for file in files):
        return tuple(files)
    found = [_partitions(file.name) for file in files]
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for partitions in found:
        for name, value in partitions.items():
            texts[name].add(value)
    numbers = {
        name for name, values in texts.items() if all(map(_is_integer, values - {_HIVE_NULL}))
    }

    def value_of(name: str, text: str) -> int | str | None:
        if text == _HIVE_NULL:
            return None
        return int(text) if name in numbers else text

    return tuple(
        structs.replace(file, partitions=tuple((n, value_of(n, v)) for n, v in of_file.items()))
        for file, of_file in zip(files, found, strict=True)
    )


def _partitions(name: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in name.split("/")[:-1]]
    return {unquote(key): unquote(value) for key, equals, value in pairs if key and equals}


def _is_integer(text: str) -> bool:
    """Whether it is an integer of 64 bits, and the text is found again in the integer."""
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdigit() and (digits[0] != "0" or text == "0")
    return plain and len(digits) < 19


def _walk(folder: Path, passed_over: list[Path]) -> Iterator[Path]:
    """Files below the folder; hidden ones are left out, and whole run directories passed over.

    Links to folders are followed, but each folder is read once: first where it really is.
    """

    def complain(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    starts = [folder]
    while starts:
        links = []
        for parent, folders, files in os.walk(starts.pop(0), onerror=complain):
            below = Path(parent)
            stat = below.stat()
            is_new = (stat.st_dev, stat.st_ino) not in seen
            seen.add((stat.st_dev, stat.st_ino))
            if not is_new or (RUN_FILE in files and below != folder):
                if is_new:
                    passed_over.append(below)
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [below / name for name in folders if (below / name).is_symlink()]
            yield from (below / name for name in files if not name.startswith("."))
        starts += links


def _passed_over(spec: str, paths: Sequence[PurePath]) -> tuple[str, ...]:
    """Names within the source; markers such as `_SUCCESS` are not worth a word."""
    names = sorted(path.as_posix() for path in paths if not path.name.startswith("_"))
    if not names:
        return ()
    shown = ", ".join(cut(one_line(name), 80) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    what = plural(len(names), "file or run directory", "files or run directories")
    return (f"{spec}: {what} not read ({shown}{more}); files end in {_KNOWN}",)


def _linked(spec: str, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    shown = ", ".join(sorted(names)[:_SHOWN])
    what = plural(len(names), "name")
    return (f"{spec}: {what} left out, since each file is read once ({shown}{more})",)


def _run_source(spec: str, path: Path) -> Source:
    """The `responses` of a run directory: its parts, and what is only in its journal.

    The journal's rows are written to a file outside of the run directory, and so are parts of
    which the journal has newer rows. Raises `JobError`, `StoreError`.
    """
    record = read_record(path)
    schema = response_schema(record.layout, record.schema_version)
    temporary = tempfile.TemporaryDirectory(prefix="batchrun-")
    folder = Path(temporary.name)

    def read(now: Snapshot) -> tuple[list[SourceFile], bool]:
        files, parts = [], []
        for part in now.responses:
            read_from = part
            if now.replaced:
                read_from = folder / part.name
                with pq.ParquetWriter(read_from, schema) as copy:
                    for batch in read_part(part, None):
                        rows = without(batch, now.replaced)
                        copy.write_batch(as_schema(rows, schema, record.layout))
            parts.append(read_from)
            name = f"{part.parent.name}/{part.name}"
            files.append(SourceFile(_wherever(read_from), name, "parquet"))
        with new_files() as new:
            renames = write_parts(new, folder, FileId(WRITER, 0), now.outcomes(), record)
            written = [folder / source for source, _ in renames]
        outcomes = [one for one in written if one.parent.name == RESPONSES]
        files += [SourceFile(one, f"journal/{one.name}", "parquet") for one in outcomes]
        return files, keys_vary(record, [*parts, *outcomes])

    with storing(folder, "write the journal's rows"):
        files, has_keys = read_snapshot(path, read)
    if has_keys:
        files = [structs.replace(file, is_keyed=True) for file in files]
    if not files:
        raise InputError(f"{spec}: this run directory holds no rows yet; give it once it has some")
    carry = (*(column.name for column in record.layout.columns), "output_text")
    return Source(spec=spec, files=tuple(files), carry=carry, temporary=temporary)


def _wherever(part: Path) -> Path | RemoteFile:
    """Where the part is read from, whatever becomes of the folder with its stub."""
    stub = read_stub(part)
    return part if stub is None else RemoteFile(stub.url, stub.size, stub.stamp)


def store_stdin(stream: BinaryIO, copy: Path, check: Check = lambda: None) -> str:
    """Copies the stream to `copy`, durable when it returns; the SHA-256 of its bytes, in hex."""
    unfinished = copy.with_name(unfinished_name(copy.name))
    try:
        with unfinished.open("wb") as file:
            sha256, _ = _read_all(stream, check, file.write)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(copy)
    except OSError as error:
        raise StoreError(
            f"{copy}: standard input cannot be stored ({error.strerror}); free space or choose "
            "another --output"
        ) from error
    return sha256


def check_stdin(stream: BinaryIO, copy: Path, sha256: str | None, check: Check) -> None:
    """Nothing, or what was stored, must come from the stream again. Raises `InputError`."""
    found, size = _read_all(stream, check, len)
    if not copy.exists():
        raise InputError(f"{copy}: standard input's copy is missing; start a new run directory")
    if size and found != sha256:
        raise InputError(
            f"standard input differs from what this run directory was begun with ({copy}); "
            "give the same input, or none, or start a new run directory with -o"
        )


def _read_all(stream: BinaryIO, check: Check, write: Callable[[bytes], object]) -> tuple[str, int]:
    """Writes what comes until the end; the SHA-256 in hex, and the number of bytes."""
    handle = stream.fileno()  # read from here alone: nothing of it is in a buffer
    digest, size = hashlib.sha256(), 0
    while True:
        check()
        if not select.select([handle], [], [], _CHECK_EVERY_S)[0]:
            continue
        chunk = os.read(handle, _CHUNK)
        if not chunk:
            return digest.hexdigest(), size
        digest.update(chunk)
        write(chunk)
        size += len(chunk)
