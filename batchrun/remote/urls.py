"""URLs of object stores and of the Hub; their form distinguishes them from local paths."""

import re
from urllib.parse import quote, unquote

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError

STORES = ("s3", "gs", "abfs")  # their schemes
HUB = "hf"
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_REGION = re.compile(r"\?region=([A-Za-z0-9-]+)$")  # any other `?` belongs to a glob or a name
_MAGIC = re.compile(r"[*?\[]")


class StoreUrl(Struct, frozen=True):
    """An object, a prefix or a glob in a store."""

    scheme: str  # one of STORES
    bucket: str  # Azure: the container, with @ACCOUNT.dfs.core.windows.net if the URL has it
    key: str  # without slashes at either end; empty: the whole bucket
    region: str | None = None
    is_anonymous: bool = False

    def __str__(self) -> str:
        """Without the region, as in messages and records."""
        user = "anonymous@" if self.is_anonymous else ""
        return f"{self.scheme}://{user}{self.bucket}/{self.key}".rstrip("/")

    @property
    def full(self) -> str:
        """With the region, if it has one."""
        return f"{self}?region={self.region}" if self.region else str(self)

    def below(self, name: str) -> str:
        """The full URL of this name in the folder."""
        return replace(self, key=f"{self.key}/{name}".lstrip("/")).full


def is_remote(text: str) -> bool:
    """Whether it is a URL of a store or of the Hub."""
    return _scheme(text) in (*STORES, HUB)


def is_store(text: str) -> bool:
    """Whether it is a URL of an object store."""
    return _scheme(text) in STORES


def _scheme(text: str) -> str:
    found = _URL.match(text)
    scheme = found[1].lower() if found else ""
    return _ALIASES.get(scheme, scheme)


def store_url(text: str) -> StoreUrl:
    """The parts of a store's URL. Raises `JobError` if it has no bucket, or holds a secret."""
    found = _URL.match(text)
    scheme = _scheme(text)
    if found is None or scheme not in STORES:
        raise JobError(f"{text}: not a URL of an object store; write {_EXAMPLES}")
    rest, region = found[2], None
    if scheme == "s3" and (said := _REGION.search(rest)):
        rest, region = rest[: said.start()], said[1]
    bucket, _, key = rest.partition("/")
    user, at, name = bucket.rpartition("@")
    is_anonymous = scheme != "abfs" and user == "anonymous"
    if ":" in user or (at and scheme != "abfs" and not is_anonymous):
        raise JobError(
            f"{scheme}://…@{name}/…: the URL holds credentials; remove them. They are read from "
            "the environment and from the files of the vendor's own tools"
        )
    bucket = name if is_anonymous else bucket
    if not bucket or _MAGIC.search(bucket):
        raise JobError(f"{text}: the URL names no bucket; write {_EXAMPLES}")
    if scheme == "abfs" and at and not user:
        raise JobError(f"{text}: the URL names no container; write {_EXAMPLES}")
    if any(part in ("", ".", "..") for part in key.strip("/").split("/")[1:-1]):
        raise JobError(f"{text}: the object's name has empty parts, . or ..; write it without them")
    return StoreUrl(scheme, bucket, key.strip("/"), region, is_anonymous)


_EXAMPLES = "s3://BUCKET/PATH, gs://BUCKET/PATH or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/…"


class HubUrl(Struct, frozen=True):
    """A file, a folder or a glob in a data set of the Hub."""

    dataset: str  # OWNER/NAME
    revision: str | None  # a branch, a tag or a commit; None: the main branch
    path: str  # within it, without slashes at either end; empty: all of it

    def __str__(self) -> str:
        revision = self.revision or ""
        if not revision.startswith("refs/"):  # a slash would end any other one
            revision = quote(revision, safe="")
        mark = f"@{revision}" if revision else ""
        return f"hf://datasets/{self.dataset}{mark}/{self.path}".rstrip("/")


_HUB_URL = re.compile(
    r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?", re.DOTALL
)


def hub_url(text: str) -> HubUrl:
    """The parts of a Hub URL. Raises `JobError`."""
    found = _HUB_URL.fullmatch(text)
    if found is None:
        raise JobError(
            f"{text}: not a data set of the Hub; write hf://datasets/OWNER/NAME/PATH, with "
            "@REVISION after NAME for a branch, a tag or a commit"
        )
    revision = unquote(found[2]) if found[2] else None
    return HubUrl(found[1], revision, (found[3] or "").strip("/"))


def name_of(text: str) -> str:
    """The last name in a URL, to name a run by; empty for globs. Raises `JobError`."""
    if _scheme(text) == HUB:
        hub = hub_url(text)
        path = hub.path or hub.dataset
    else:
        store = store_url(text)
        path = store.key or store.bucket.partition("@")[0]
    return "" if has_glob(path) else path.rpartition("/")[2]


def has_glob(path: str) -> bool:
    """Whether it is a pattern for several names."""
    return _MAGIC.search(path) is not None


def fixed_folder(pattern: str) -> str:
    """The folder that all names of a pattern have in common; empty: none."""
    head = _MAGIC.split(pattern, maxsplit=1)[0]
    return head.rpartition("/")[0]


def name_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern for whole names: `*` and `?` match within a folder, `**` across folders."""
    pieces, at = [], 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            pieces.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            pieces.append(".*")
            at += 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            pieces.append(f"[{'^' + inside[1:] if inside[0] == '!' else inside}]")
            at = end + 1
        else:
            pieces.append({"*": "[^/]*", "?": "[^/]"}.get(pattern[at]) or re.escape(pattern[at]))
            at += 1
    return re.compile("".join(pieces), re.DOTALL)
