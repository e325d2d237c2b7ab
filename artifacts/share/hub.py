"""Models on the Hugging Face hub: `push` publishes a bundle in one commit, `pull` fetches and checks a bundle.

The hub library retries requests, resumes broken transfers, and takes its token from HF_TOKEN or from the hub's own
login; this module never passes, keeps or prints a token. HF_ENDPOINT names another hub.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from artifacts.folders import SUMS, read_sums
from artifacts.share.bundle import CARD, CONFIG, OPTIONAL, Card, make_bundle
from artifacts.share.store import Store
from codec.console import notes
from codec.errors import CodecError, FormatError, MismatchError
from codec.model.transformer import MAX_PARAMETERS
from codec.run_folder import DOCUMENTS, PACK, PROOF

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES = {PACK, PROOF, DOCUMENTS, CONFIG, CARD, *OPTIONAL}
"""Files that a bundle may hold besides its sums; nothing else is ever fetched."""

TAG = "underpar"
"""Tag of the model card, by which models are found."""

TRIES, PAUSE = 4, 1.0
"""Tries of a request that the hub library has given up, and seconds before the second try."""

MAX_BYTES = 8 * MAX_PARAMETERS
"""Largest size of a fetched file: twice the float32 weights of the largest model that can be imported."""

T = TypeVar("T")


class HubError(CodecError):
    """An unreachable hub, a refusal, or a missing model."""


@dataclass(frozen=True)
class Listed:
    """A model on the hub, at the commit of its main branch."""

    name: str
    commit: str


def push(name: str, run: Path, card: Card, private: bool = False) -> str:
    """Publish a run as the model `owner/name` of the hub and return the commit.

    Everything appears in one commit or not at all. A second call continues a broken one: files that arrived are not
    sent again, and nothing happens if the hub has the same bundle already.

    Args:
        name: `owner/name`.
        run: the run folder.
        card: licence and training data.
        private: whether a new model is private.

    Raises:
        HubError: publishing failed.
        CodecError: as `artifacts.share.bundle.make_bundle`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = _api(name)
    with tempfile.TemporaryDirectory() as room:
        bundle = Path(room)
        make_bundle(run, bundle, name, card)
        _ask(name, lambda: api.create_repo(name, exist_ok=True, private=private))
        adds = [CommitOperationAdd(path.name, path) for path in sorted(bundle.iterdir())]
        names = {path.name for path in bundle.iterdir()}
        sums = (bundle / SUMS).read_bytes()

        def commit() -> str:
            head = api.model_info(name)
            there = {file.rfilename for file in head.siblings or []}
            if SUMS in there and _same_sums(api, name, str(head.sha), sums, room):
                return str(head.sha)
            stale = [CommitOperationDelete(old) for old in sorted(there & FILES - names)]
            message = f"underpar: {name.rpartition('/')[2]}"
            api.create_commit(name, [*adds, *stale], commit_message=message, parent_commit=head.sha)
            return str(api.model_info(name).sha)

        return _ask(name, commit)


def pull(name: str, store: Store, revision: str | None = None) -> Path:
    """Fetch the model `owner/name` into a store, check all of it, and return its folder.

    The next call continues a broken one.

    Args:
        name: `owner/name`.
        store: for the model.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        HubError: fetching failed.
        MismatchError: the files are not those published; the store is as before.
        FormatError: the hub's model is no model of this project.
    """
    api, target = _api(name), store.folder(name)
    commit = str(_ask(name, lambda: api.model_info(name, revision=revision)).sha)
    room = store.root / ".partial" / f"{target.parent.name}--{target.name}" / commit
    room.mkdir(parents=True, exist_ok=True)
    _fetch(api, name, SUMS, commit, room)
    try:
        wanted = read_sums(room)
        if strange := sorted(set(wanted) - FILES):
            raise MismatchError(f"model {name}: {SUMS} lists {strange[:3]}, which belong to no model of underpar's")
        for file in sorted(wanted):
            _fetch(api, name, file, commit, room)
        shutil.rmtree(room / ".cache")
        target = store.accept(name, room)
    except (MismatchError, FormatError):
        shutil.rmtree(room)  # the next call would take a wrong file as fetched
        raise
    shutil.rmtree(room.parent)
    return target


def models(owner: str | None = None) -> list[Listed]:
    """Return this project's models on the hub, of one owner or all.

    Raises:
        HubError: the hub cannot be reached.
    """
    api = _api(owner or "")
    found = _ask(owner or "the hub", lambda: list(api.list_models(filter=TAG, author=owner, full=True)))
    return [Listed(model.id, str(model.sha)) for model in found]


def _api(name: str) -> "HfApi":
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not notes.is_terminal:
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="underpar")


def _same_sums(api: "HfApi", name: str, commit: str, sums: bytes, room: str) -> bool:
    """Return whether the model at a commit has these sums."""
    with tempfile.TemporaryDirectory(dir=Path(room).parent) as folder:
        return Path(api.hf_hub_download(name, SUMS, revision=commit, local_dir=folder)).read_bytes() == sums


def _fetch(api: "HfApi", name: str, file: str, commit: str, room: Path) -> None:
    """Fetch a file into `room`, as it is at a commit."""
    url = f"{name}/{file}"
    found = _ask(url, lambda: api.get_paths_info(name, [file], revision=commit))
    size = getattr(found[0], "size", None) if found else None
    if size is None or size > MAX_BYTES:
        raise MismatchError(f"model {url}: {size} bytes, expected a file of at most {MAX_BYTES}; it cannot be fetched")
    _ask(url, lambda: api.hf_hub_download(name, file, revision=commit, local_dir=room))


def _ask(what: str, action: Callable[[], T]) -> T:
    """Return the result of `action`, tried again after failures that may pass.

    Raises:
        HubError: the last try failed.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(TRIES):
        try:
            return action()
        except CodecError:
            raise
        except Exception as error:  # the library's errors have no common class
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            # 409 and 412: another commit came between; the next try starts from that commit.
            final = status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429)
            if final or attempt == TRIES - 1:
                reason = " ".join(str(error).split()) or type(error).__name__
                if token := get_token():
                    reason = reason.replace(token, "…")
                raise HubError(
                    f"{what}: {reason[:400]}; check the name, HF_TOKEN, HF_ENDPOINT and the connection, then run the "
                    "same command again to continue"
                ) from error
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last try returns or raises")
