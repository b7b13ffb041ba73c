"""Object stores through `pyarrow.fs`: settings from the environment, a time limit for each call.

Retries are those of the libraries. Not every library limits a server's silence (the one for Google
waits minutes), so each call is made in a thread and given up after a time. Each error is a
`RemoteError`, whose text says what to do.
"""

import datetime as dt
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from batchrun.errors import JobError
from batchrun.remote.urls import StoreUrl, store_url

T = TypeVar("T")

_CONNECT_S = 5.0
_SILENCE_S = 20.0  # S3: longest time without any data
_ATTEMPTS = 8  # S3: about a minute, with the pauses
_FIRST_SILENCE_S, _FIRST_ATTEMPTS = 5.0, 3  # at the first contact: 17 s of silence
_RETRY_S = 60.0  # Google: for how long it retries
_FIRST_RETRY_S = 10.0
_CALL_S = 180.0  # for one call, whatever the library does
_FIRST_CALL_S = 20.0  # what follows a failure has to be done by 30 s
_LOOK_S = 0.1  # between looks whether it is still waited for
_LEASE_S, _LEASE_PAUSE_S = 16.0, 0.5
_CALLS = 3  # of what the libraries do not try again
_CALL = "remote call"  # name of threads
SLOWEST = 50_000  # bytes a second: slower transfers of whole files are given up
MULTIPART_BYTES = 10 << 20  # pyarrow sends what is smaller in one request


class RemoteError(OSError):
    """A store or the Hub refused something or cannot be reached; the text says what to do."""


class GivenUp(RemoteError):  # noqa: N818 - no fault
    """Nobody waits for this any more."""


# In its context, what ends the waiting for all calls.
giving_up: ContextVar[threading.Event | None] = ContextVar("giving_up", default=None)


class RemoteObject(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    stamp: int  # nanoseconds since 1970 by the store's clock, when it was written


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Makes the call. Raises what it raises; `RemoteError` if it takes longer, `GivenUp`."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def answer() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    # Not from a pool: the interpreter would wait for its threads at exit.
    thread = threading.Thread(target=answer, name=_CALL, daemon=True)
    thread.start()
    end_s, given_up = time.monotonic() + seconds, giving_up.get()
    while thread.is_alive() and (left_s := end_s - time.monotonic()) > 0:
        thread.join(left_s if given_up is None else min(left_s, _LOOK_S))
        if given_up is not None and given_up.is_set() and thread.is_alive():
            raise GivenUp(f"{what}: no longer waited for")
    if errors:
        raise errors[0]
    if not answers:
        raise RemoteError(f"{what}: no answer for {seconds:.0f} s; check the network")
    return answers[0]


def has_open_calls() -> bool:
    """Whether a call that nobody waits for is still being made: pyarrow would wait at exit."""
    return any(thread.name == _CALL for thread in threading.enumerate())


class ObjectStore:
    """One bucket or container; keys are names in it."""

    def __init__(self, url: StoreUrl, *, is_first: bool = False) -> None:
        """`is_first`: calls fail soon if nothing answers. Raises `JobError`."""
        self._url = url
        self._seconds = _FIRST_CALL_S if is_first else _CALL_S
        self._bucket = url.bucket.partition("@")[0]
        self._shows_begun = url.scheme == "abfs"
        self.files = _filesystem(url.scheme, url.bucket, url.region, url.is_anonymous, is_first)

    def find(self, key: str) -> RemoteObject | None:
        """The object of this name; None if there is none. Raises `RemoteError`."""
        info = self._call(key, lambda: self.files.get_file_info(self._path(key)))
        return self._object(info) if info.type is fs.FileType.File else None

    def listing(self, prefix: str, *, deep: bool = True) -> list[RemoteObject]:
        """The objects below a folder, in the order of their names. Raises `RemoteError`."""
        where = fs.FileSelector(self._path(prefix), recursive=deep, allow_not_found=True)
        infos = self._call(prefix, lambda: self.files.get_file_info(where))
        files = (info for info in infos if info.type is fs.FileType.File)
        # A name that ends with a slash stands for a folder.
        return sorted(self._object(info) for info in files if not info.path.endswith("/"))

    def check_listing(self, prefix: str) -> None:
        """Raises `RemoteError` if nothing can be listed; unlike a long listing this takes no time.

        It asks for what is in a folder that does not exist.
        """
        self.listing(f"{prefix}/.batchrun".lstrip("/"), deep=False)

    def open(self, key: str) -> Any:
        """The object as a `NativeFile`, to be read at any place. Raises `RemoteError`.

        Of Google's, the first call of the file holds the interpreter for a round trip, in whatever
        thread: to see whether the file is closed, pyarrow begins to read it.
        """
        return self._call(key, lambda: self.files.open_input_file(self._path(key)))

    def read(self, key: str) -> bytes | None:
        """The whole object; None if there is none. Raises `RemoteError`."""
        arrived = size = 0
        for _ in range(_CALLS):  # it may be written meanwhile
            found = self._find_whole(key)
            data = None if found is None else self._read_once(found.key)
            if found is None or (data is None and found.key == key):
                return None
            if data is not None and len(data) >= found.size:
                return data
            arrived, size = len(data or b""), found.size
        raise RemoteError(
            f"{self.name(key)}: only {arrived} of {size} bytes arrived; check the network"
        )

    def _find_whole(self, key: str) -> RemoteObject | None:
        """The object, or the spare one of an object that is not written yet; see `write`."""
        found = self.find(key)
        if found is None or found.size or not self._shows_begun:
            return found
        spare = self.find(spare_key(key))
        return self.find(key) if spare is None or not spare.size else spare

    def _read_once(self, key: str) -> bytes | None:
        def read() -> bytes | None:
            # A stream: with any other kind of file, Google's library makes a request while it holds
            # the interpreter's lock.
            try:
                with self.files.open_input_stream(self._path(key), compression=None) as file:
                    data: bytes = file.read()
                    return data
            except FileNotFoundError:  # deleted since
                return None
            except OSError as error:  # of what was deleted since, S3's library says other things
                is_reached = "AWS Error" in str(error) and "NETWORK_CONNECTION" not in str(error)
                info = self.files.get_file_info(self._path(key)) if is_reached else None
                if info is not None and info.type is fs.FileType.NotFound:
                    return None
                raise

        return self._call(key, read)

    def read_at(self, file: Any, key: str, size: int, place: int) -> bytes:
        """`size` bytes of an open object. Raises `RemoteError`, also if it ends earlier."""
        data: bytes = self._call(key, lambda: file.read_at(size, place))
        if len(data) < size:
            raise RemoteError(
                f"{self.name(key)}: ends after {place + len(data):,} bytes, but had "
                f"{place + size:,} or more before; check whether it has changed, or whether the "
                "network cuts answers"
            )
        return data

    def write(self, key: str, data: bytes) -> None:
        """Writes the object, wholly or not at all. Raises `RemoteError`.

        pyarrow makes an empty object in Azure before it writes, in place of what was there. So a
        spare one is written first, which `read` takes meanwhile, and after a kill.
        """
        if self._shows_begun and data:
            self._call(key, lambda: self._write(spare_key(key), lambda: iter((data,))))
        self._call(key, lambda: self._write(key, lambda: iter((data,))))
        if self._shows_begun and data:
            self.delete(spare_key(key))

    def upload(self, key: str, path: Path) -> None:
        """Uploads the file, wholly or, but for an empty one in Azure, not at all.

        Raises `RemoteError`, `OSError`.

        If pyarrow learns of an error while it writes, it stores what it has. So the stream is
        closed only after everything was written, and opened only after the first piece was read.
        """
        more_s = path.stat().st_size / SLOWEST
        with path.open("rb") as file:

            def pieces() -> Iterator[bytes]:
                file.seek(0)
                return iter(lambda: file.read(MULTIPART_BYTES), b"")

            self._call(key, lambda: self._write(key, pieces), more_s)

    def _write(self, key: str, pieces: Callable[[], Iterator[bytes]]) -> None:
        """Begins again if the server has forgotten the upload: a 404, as Google documents.

        It may also mean that there is no such bucket, as the last attempt then says.
        """
        _again_if(
            lambda error: isinstance(error, FileNotFoundError),
            lambda: self._write_once(key, pieces()),
        )

    def _write_once(self, key: str, pieces: Iterator[bytes]) -> None:
        first = next(pieces, b"")
        stream = self.files.open_output_stream(self._path(key), compression=None)
        stream.write(first)
        for piece in pieces:
            stream.write(piece)
        stream.close()

    def delete(self, key: str) -> None:
        """Deletes the object, if it exists. Raises `RemoteError`."""

        def delete() -> None:
            try:
                self.files.delete_file(self._path(key))
            except FileNotFoundError:
                return

        self._call(key, delete)

    def copy(self, key: str, to: str) -> None:
        """Copies an object within the store. Raises `RemoteError`."""
        self._call(to, lambda: self.files.copy_file(self._path(key), self._path(to)))

    def paths(self, keys: Sequence[str]) -> list[str]:
        """The paths of objects in `files`."""
        return [self._path(key) for key in keys]

    def name(self, key: str) -> str:
        """The URL of an object, for messages."""
        return f"{self._url.scheme}://{self._url.bucket}/{key}"

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{key}".rstrip("/")

    def _object(self, info: Any) -> RemoteObject:
        key = info.path.removeprefix(f"{self._bucket}/")
        return RemoteObject(key, info.size or 0, info.mtime_ns or 0)

    def _call(self, key: str, call: Callable[[], T], more_s: float = 0.0) -> T:
        try:
            return within(self._seconds + more_s, self.name(key), lambda: _once_free(call))
        except RemoteError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            # pyarrow raises `ValueError` if an error has closed a stream of Google's.
            raise RemoteError(explained(self.name(key), self._url.scheme, error)) from error


def spare_key(key: str) -> str:
    """Of an object that is being written, beside the one with this key; no part has such a name."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/.{name}.tmp"


def _again_if(passes: Callable[[OSError], bool], call: Callable[[], T]) -> T:
    """The call, up to three times while its error is one that passes."""
    for _ in range(_CALLS - 1):
        try:
            return call()
        except OSError as error:
            if not passes(error):
                raise
    return call()


def _once_free(call: Callable[[], T]) -> T:
    """The call, once nobody has a lease of the object any more.

    pyarrow takes one of 15 s to delete an object in Azure, which a kill leaves there.
    """
    end_s = time.monotonic() + _LEASE_S
    while True:
        try:
            return _again_if(_was_cut, call)
        except OSError as error:
            is_leased = re.search("LeaseIdMissing|LeaseAlreadyPresent", str(error))
            if not is_leased or time.monotonic() > end_s:
                raise
        time.sleep(_LEASE_PAUSE_S)


def _was_cut(error: OSError) -> bool:
    """Whether an answer broke off in its body, after which Azure's library does not retry."""
    return "before getting full response" in str(error)


_SAID = {  # what to do, by the texts of errors
    "there is no such bucket; check its name, or create it": (
        r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|bucket does not exist"
    ),
    "the credentials are missing, refused or not allowed to do this; check them: {credentials}": (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|EXPIRED|UNRECOGNIZED_CLIENT|"
        r"HTTP status 40[13]|Forbidden|\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|"
        r"AuthenticationFailed|AuthorizationFailure|[Cc]redential"
    ),
    "it cannot be reached; check the network, and {endpoint}": (
        r"NETWORK_CONNECTION|curlCode|CURL error|Could not (connect|resolve)|Timeout|"
        r"Fail to get a new connection|\[errno (110|111|113)\]"
    ),
    "the bucket is in another region; set AWS_REGION": (
        r"HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocation"
    ),
    "the store is overloaded or failing; wait until it works again": (
        r"SLOW_DOWN|HTTP status 5\d\d|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    ),
}
_CREDENTIALS = {
    "s3": "they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and ~/.aws, or "
    "the machine's role",
    "gs": "they come from GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login",
    "abfs": "they come from AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN, az login or the machine's identity",
}
_ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "STORAGE_EMULATOR_HOST",
    "abfs": "the account's name",
}


def one_line(error: BaseException) -> str:
    """Its text, without what follows the paths of URLs: signatures may stand there."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", " ".join(str(error).split()))


def explained(name: str, scheme: str, error: BaseException) -> str:
    """The library's error in one line, and what to do."""
    text = one_line(error)
    status = re.search(r"AWS Error ([A-Z_]+).*?operation: (.*)", text)
    reason = ": ".join(filter(None, status.groups())) if status else text
    found = (advice for advice, pattern in _SAID.items() if re.search(pattern, text))
    advice = next(found, "check with the vendor's own tool whether it can be used").format(
        credentials=_CREDENTIALS[scheme], endpoint=_ENDPOINTS[scheme]
    )
    return f"{name}: {reason:.300}; {advice}"


@cache
def store_of(url: str, *, is_first: bool = False) -> tuple[ObjectStore, str]:
    """The store and the key of a URL. Raises `JobError`."""
    parts = store_url(url)
    return _store(parts.scheme, parts.bucket, parts.region, parts.is_anonymous, is_first), parts.key


@cache
def _store(
    scheme: str, bucket: str, region: str | None, is_anonymous: bool, is_first: bool
) -> ObjectStore:
    return ObjectStore(StoreUrl(scheme, bucket, "", region, is_anonymous), is_first=is_first)


@cache
def _filesystem(
    scheme: str, bucket: str, region: str | None, is_anonymous: bool, is_first: bool
) -> fs.FileSystem:
    try:
        if scheme == "s3":
            return _s3(region, is_anonymous, is_first)
        return _gcs(is_anonymous, is_first) if scheme == "gs" else _azure(bucket)
    except (AttributeError, ImportError) as error:  # a build of pyarrow without it
        raise JobError(
            f"{scheme}://: this build of pyarrow does not support it ({error}); install pyarrow "
            "from PyPI"
        ) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise JobError(explained(f"{scheme}://{bucket}", scheme, error)) from error


def _s3(region: str | None, is_anonymous: bool, is_first: bool) -> fs.FileSystem:
    settings: dict[str, Any] = {}
    profile = _aws_profile(is_anonymous=is_anonymous)
    endpoint = _first_of("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        settings = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    with _making_s3:
        region = region or _first_of(*_REGIONS) or profile.get("region") or "us-east-1"
        with _said_region(region):
            return fs.S3FileSystem(
                anonymous=is_anonymous,
                region=region,
                connect_timeout=_CONNECT_S,
                request_timeout=_FIRST_SILENCE_S if is_first else _SILENCE_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(
                    max_attempts=_FIRST_ATTEMPTS if is_first else _ATTEMPTS
                ),
                # Uploads below 10 MB are one request, which a kill cannot split.
                allow_delayed_open=True,
                background_writes=False,
                **settings,
            )


_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_making_s3 = threading.Lock()


@contextmanager
def _said_region(region: str) -> Iterator[None]:
    """The region is in the environment, for as long as a client is made.

    Whatever region it is given, the library first looks for one of its own: if there is none in
    the environment or the profile, it asks the network, as if this were a machine of Amazon's.
    """
    if _first_of(*_REGIONS):
        yield
        return
    os.environ["AWS_REGION"] = region
    try:
        yield
    finally:
        del os.environ["AWS_REGION"]


def _aws_profile(*, is_anonymous: bool = False) -> dict[str, str]:
    """What the files in `~/.aws` say of the profile that the environment names.

    Raises `JobError` if that profile cannot give credentials: the library would go on with those
    of the machine, or with none.
    """
    import configparser  # noqa: PLC0415 - rarely needed

    named = _first_of("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    name, found = named or "default", list[Mapping[str, str]]()
    prefix = "" if name == "default" else "profile "  # in the second file
    for variable, usual, section in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
        ("AWS_CONFIG_FILE", "~/.aws/config", f"{prefix}{name}"),
    ):
        file = configparser.ConfigParser(interpolation=None, strict=False)
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            file.read(Path(os.environ.get(variable) or usual).expanduser())
        found += [file[section]] if file.has_section(section) else []
    profile = {key: value for one in found for key, value in one.items()}
    if named is None or is_anonymous or os.environ.get("AWS_ACCESS_KEY_ID"):
        return profile
    if not found:
        raise JobError(
            f"AWS_PROFILE is {name}, and no such profile is in ~/.aws/credentials or ~/.aws/config "
            "(AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name other files); correct it"
        )
    if "role_arn" in profile and {"source_profile", "credential_source"} & profile.keys():
        raise JobError(
            f"AWS_PROFILE is {name}, a profile that takes a role (role_arn) with the keys of "
            "another, which batchrun cannot do by itself; add a profile to ~/.aws/config that has "
            f"credential_process = aws configure export-credentials --profile {name}, and name "
            "that one in AWS_PROFILE"
        )
    return profile


def _gcs(is_anonymous: bool, is_first: bool) -> fs.FileSystem:
    settings: dict[str, Any] = {}
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        parts = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
        settings = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    seconds = _FIRST_RETRY_S if is_first else _RETRY_S
    return fs.GcsFileSystem(
        anonymous=is_anonymous or emulator is not None,
        retry_time_limit=dt.timedelta(seconds=seconds),
        **settings,
    )


def _azure(bucket: str) -> fs.FileSystem:
    said = dict(
        pair.partition("=")[::2]
        for pair in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
        if "=" in pair
    )
    host = bucket.partition("@")[2]
    account = host.partition(".")[0] or said.get("AccountName")
    account = account or _first_of("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
    if not account:
        raise JobError(
            f"abfs://{bucket}: the URL names no storage account; write "
            "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH, or set AZURE_STORAGE_ACCOUNT_NAME"
        )
    key = said.get("AccountKey") or _first_of("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
    sas = said.get("SharedAccessSignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    settings: dict[str, Any] = {}
    for kind in ("blob", "dfs"):
        endpoint = said.get(f"{kind.capitalize()}Endpoint")
        suffix = f".{kind}.{said['EndpointSuffix']}" if "EndpointSuffix" in said else None
        if endpoint is None and suffix is None:  # an emulator has one address for both
            blob = urlsplit(said.get("BlobEndpoint", ""))
            endpoint = None if blob.netloc.startswith(f"{account}.") else blob.geturl()
        if endpoint:
            parts = urlsplit(endpoint)
            settings[f"{kind}_storage_authority"] = parts.netloc.removeprefix(account)
            settings[f"{kind}_storage_scheme"] = parts.scheme
        elif suffix:
            settings[f"{kind}_storage_authority"] = suffix
    sas = None if key else sas
    return fs.AzureFileSystem(account, account_key=key, sas_token=sas, **settings)


def _first_of(*names: str) -> str | None:
    """The first of these variables that is set."""
    return next(filter(None, map(os.environ.get, names)), None)
