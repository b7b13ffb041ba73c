"""Data sets of the Hub, through huggingface_hub, with its credentials and cache; at one commit."""

from pathlib import Path
from typing import Any

from batchrun.errors import InputError, JobError
from batchrun.remote.object_stores import RemoteError, RemoteObject, within
from batchrun.remote.urls import HubUrl

_CALL_S = 120.0
_FIRST_CALL_S = 25.0


def pinned(url: HubUrl) -> HubUrl:
    """The same URL, at the present commit of its branch or tag. Raises as `_asked`."""

    def resolve(api: Any) -> str:
        commit: str = api.dataset_info(url.dataset, revision=url.revision, timeout=10).sha
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

    found: list[RemoteObject] = _asked(url, _CALL_S, walk)
    return found


def local_copy(url: HubUrl) -> Path:
    """The file in the cache; downloads it if it is not there. Raises as `_asked`."""
    hub = _library()

    def load() -> str:
        path: str = hub.hf_hub_download(
            url.dataset, url.path, revision=url.revision, repo_type="dataset"
        )
        return path

    return Path(_explained(url, load))


def _asked(url: HubUrl, seconds: float, ask: Any) -> Any:
    """Raises `JobError` without the library, `InputError` for what is missing; `RemoteError`."""
    api = _library().HfApi(library_name="batchrun")
    return _explained(url, lambda: within(seconds, str(url), lambda: ask(api)))


def _explained(url: HubUrl, call: Any) -> Any:
    from huggingface_hub import errors  # noqa: PLC0415 - an extra

    try:
        return call()
    except RemoteError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"{url}: its owner has not given you access; ask for it on its page, and log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{url}: the data set has no such revision; check @REVISION") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{url}: no such data set, or it is private; check OWNER/NAME, and log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"{url}: no such file or folder in the data set; check its path"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RemoteError(
            f"{url}: the request to the Hub failed ({reason:.300}); check the network, HF_ENDPOINT "
            "and HF_TOKEN"
        ) from error


def _library() -> Any:
    try:
        import huggingface_hub.utils  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise JobError(
            "hf:// needs huggingface_hub, which is not installed; pip install 'batchrun[hub]'"
        ) from error
    library: Any = huggingface_hub
    library.utils.disable_progress_bars()
    return library
