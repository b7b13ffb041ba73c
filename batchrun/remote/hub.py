"""Data sets of the Hub, through huggingface_hub, with its credentials and cache; at one commit.

The library limits the Hub's silence (HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT: 10 s each) and
resumes downloads that break off. But it waits minutes before it gives up a silent Hub, and tries
few calls again that the Hub fails: so each call is made up to three times, and has a time limit.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from batchrun.errors import JobError
from batchrun.remote.object_stores import (
    SLOWEST,
    RemoteError,
    RemoteObject,
    one_line,
    within,
)
from batchrun.remote.urls import HubUrl

T = TypeVar("T")

_SILENCE_S = 10.0
_CALL_S = 120.0
_FIRST_CALL_S = 25.0
_CUT = "RemoteProtocolError", "ReadError"  # httpx's, whose major versions are packages of their own
_PAUSES_S = 1.0, 2.0  # between calls that the Hub has failed


def pinned(url: HubUrl) -> HubUrl:
    """The same URL, at the present commit of its branch or tag. Raises as `_asked`."""

    def resolve(api: Any) -> str:
        about = api.dataset_info(url.dataset, revision=url.revision, timeout=_SILENCE_S)
        commit: str = about.sha
        return commit

    return HubUrl(url.dataset, _asked(url, _FIRST_CALL_S, resolve), url.path)


def list_files(url: HubUrl, folder: str) -> list[RemoteObject]:
    """The files below a folder of a data set, in the order of their names. Raises as `_asked`."""

    def walk(api: Any) -> list[RemoteObject]:
        tree = api.list_repo_tree(
            url.dataset,
            folder or None,
            recursive=True,
            revision=url.revision,
            repo_type="dataset",
        )
        return sorted(RemoteObject(one.path, one.size, 0) for one in tree if hasattr(one, "size"))

    return _asked(url, _CALL_S, walk)


def try_out(url: HubUrl) -> None:
    """Asks for the file, unless it is in the cache. Raises as `_asked`."""
    hub = _library()
    if isinstance(
        hub.try_to_load_from_cache(
            url.dataset, url.path, revision=url.revision, repo_type="dataset"
        ),
        str,
    ):
        return
    place = hub.hf_hub_url(url.dataset, url.path, revision=url.revision, repo_type="dataset")
    _asked(url, _FIRST_CALL_S, lambda api: api.get_hf_file_metadata(url=place, timeout=_SILENCE_S))


def local_copy(url: HubUrl, size: int) -> Path:
    """The file of so many bytes in the cache; downloads it if it is not there. Raises as `_asked`.

    Of a commit that is in the cache, the Hub is asked nothing.
    """

    def load(api: Any) -> Path:
        path = api.hf_hub_download(
            url.dataset, url.path, revision=url.revision, repo_type="dataset"
        )
        return Path(path)

    path = _asked(url, _CALL_S + size / SLOWEST, load)
    if (found := path.stat().st_size) != size:
        raise RemoteError(
            f"{url}: {found:,} bytes were downloaded, but the data set lists {size:,}; delete "
            f"{path}, and run the same command again"
        )
    return path


def _asked(url: HubUrl, seconds: float, ask: Callable[[Any], T]) -> T:
    """Raises `JobError` without the library, else `RemoteError`."""
    library = _library()
    api = library.HfApi(library_name="batchrun")
    try:
        return within(seconds, str(url), lambda: _again(lambda: ask(api)))
    except RemoteError:
        raise
    except Exception as error:
        raise RemoteError(f"{url}: {_explained(error, library)}") from error


def _again(call: Callable[[], T]) -> T:
    for pause_s in _PAUSES_S:
        try:
            return call()
        except Exception as error:
            was_cut = type(error).__name__ in _CUT or "Consistency check failed" in str(error)
            if not (was_cut or _is_busy(_status(error))):
                raise
        time.sleep(pause_s)
    return call()


def _status(error: BaseException) -> int:
    """The status of the answer that it was raised for; 0 without one."""
    status: int = getattr(getattr(error, "response", None), "status_code", 0)
    return status


def _is_busy(status: int) -> bool:
    return status in (408, 429) or status >= 500


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_ADVICE = {  # by the status of the answer
    401: f"your token is refused: {_LOG_IN}",
    403: "you may not do this: ask for access on the page of the data set, or use another token",
    429: "too many requests: wait, and log in with `hf auth login`, which allows more",
}


def _explained(error: BaseException, library: Any) -> str:
    """What is wrong, and what to do."""
    from huggingface_hub import errors  # noqa: PLC0415 - an extra

    # Nothing in the cache, and the Hub could not be asked: this says why.
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    said = {
        errors.GatedRepoError: "its owner has not given you access; ask for it on its page, and "
        + _LOG_IN,
        errors.RevisionNotFoundError: "the data set has no such revision; check @REVISION",
        errors.RepositoryNotFoundError: "no such data set, or it is private; check OWNER/NAME, and "
        + _LOG_IN,
        errors.EntryNotFoundError: "no such file or folder in the data set; check its path",
    }
    for kind, words in said.items():
        if isinstance(error, kind):
            return words
    status = _status(error)
    advice = _ADVICE.get(status, "check the network, HF_ENDPOINT and HF_TOKEN")
    if status not in _ADVICE and _is_busy(status):
        advice = "the Hub is overloaded or failing: wait until it works again"
    text, token = one_line(error), library.get_token()
    text = text.replace(token, "…") if token else text  # a server may repeat it
    return f"the request to the Hub failed ({text:.300}); {advice}"


def _library() -> Any:
    try:
        import huggingface_hub.utils  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise JobError(
            "hf:// needs huggingface_hub, which is not installed; pip install 'batchrun[hub]'"
        ) from error
    library: Any = huggingface_hub
    library.utils.disable_progress_bars()
    library.utils.logging.set_verbosity_error()  # its warnings hold URLs with their signatures
    return library
