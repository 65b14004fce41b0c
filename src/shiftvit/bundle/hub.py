"""`push` and `pull`: transfer trained models to and from the Hugging Face Hub; `push_space`: uploads a demo.

`huggingface_hub` handles the transfer, the token (`hf auth login` or HF_TOKEN) and the address (HF_ENDPOINT). This
module decides which files are transferred and verifies that a download is a bundle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.bundle.bundle import LARGEST_CARD, Bundle, check_place
from shiftvit.bundle.card import address_card, write_card
from shiftvit.bundle.stored.manifest import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.errors import ShiftViTError, suggest_install, take_first_line

# The files that are downloaded, and their largest size in bytes. The paper's largest model has 400 MB of weights.
_LARGEST = {MANIFEST: 2**24, WEIGHTS: 2**32, GRAPH: 2**32, CARD: LARGEST_CARD}
# Timeout of the listing in seconds. For the files, the client has its own timeouts and retries.
_PATIENCE = 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def push(
    bundle: Bundle | str | Path, repository: str, *, private: bool = False, message: str = "Upload a ShiftViT model"
) -> str:
    """Uploads a bundle in one commit, in place of an earlier one, and returns the repository's address.

    Other files in the repository stay.

    Args:
        bundle: a `Bundle`, or what `Bundle.load` takes.
        repository: "OWNER/NAME"; created if it does not exist.
        private: create a private repository; an existing one must be private.
        message: the commit message.

    Raises:
        ShiftViTError: the bundle is missing or damaged, the name is invalid, there is no token, the token lacks write
            access, or the network fails.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    check_target(repository)
    card = address_card(write_card(bundle) if bundle.card is None else bundle.card, repository)
    contents = dataclasses.replace(bundle, card=card).files()
    # Other tools would find a leftover graph, whose weights differ.
    return _upload(repository, "model", contents, ours=_LARGEST.keys(), private=private, message=message)


def push_space(
    contents: Mapping[str, bytes],
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload a ShiftViT demo",
) -> str:
    """Uploads a demo as a static Space in one commit, in place of an earlier one, and returns its address.

    Other files in the Space stay.

    Args:
        contents: file path in the Space -> content, as `shiftvit.serve.demo.read_space_files` returns them.
        repository: "OWNER/NAME"; created if it does not exist.
        private: create a private Space; an existing one must be private.
        message: the commit message.

    Raises:
        ShiftViTError: as `push`; or the Space exists and is not static.
    """
    check_target(repository)
    ours = {name.partition("/")[0] for name in contents}
    return _upload(repository, "space", contents, ours=ours, private=private, message=message)


def check_target(repository: str) -> None:
    """Checks the client, the name and the token, before anything is created or sent.

    Raises:
        ShiftViTError: the client is missing, the name is invalid, or there is no token.
    """
    library = _import_library()
    _check_name(library, repository)
    endpoint = library.HfApi().endpoint
    with _shorten_errors(repository, endpoint):
        if library.get_token() is None:
            raise ShiftViTError(f"there is no token for {endpoint}; log in: hf auth login")


def _upload(
    repository: str,
    kind: str,
    contents: Mapping[str, bytes],
    *,
    ours: Collection[str],
    private: bool,
    message: str,
) -> str:
    """Uploads files in one commit, which also deletes other files with a top name in `ours`; returns the address."""
    library = _import_library()
    api = library.HfApi()
    with _shorten_errors(repository, api.endpoint):
        address = api.create_repo(
            repository,
            repo_type=kind,
            space_sdk="static" if kind == "space" else None,
            private=private or None,
            exist_ok=True,
        )
        there = api.repo_info(repository, repo_type=kind, timeout=_PATIENCE)
        if kind == "space" and there.sdk != "static":
            raise ShiftViTError(
                f"{repository!r} exists and is a Space with the SDK {there.sdk!r}, not 'static', so nothing is pushed; "
                "choose another"
            )
        if private and not there.private:
            raise ShiftViTError(
                f"{repository!r} exists and is public, so nothing is pushed; make it private in its settings at "
                f"{address}, or choose another"
            )
        added = [library.CommitOperationAdd(name, content) for name, content in contents.items()]
        found = {file.rfilename for file in there.siblings or []}
        stale = sorted(name for name in found - contents.keys() if name.partition("/")[0] in ours)
        deleted = [library.CommitOperationDelete(name) for name in stale]
        api.create_commit(repository, [*added, *deleted], repo_type=kind, commit_message=message)
    return str(address)


def pull(repository: str, *, revision: str | None = None, out: str | Path | None = None) -> Path:
    """Downloads a bundle, verifies it as `Bundle.load` does and returns its path; a failure leaves nothing behind.

    Args:
        repository: "OWNER/NAME".
        revision: a branch, a tag or a commit; None: the newest on the main branch.
        out: the folder or .zip file to create; None: the folder NAME. An existing bundle is replaced.

    Raises:
        ShiftViTError: the name is invalid, the repository or revision does not exist, it holds no valid bundle, a
            file is too large, `out` exists and is not a bundle, the disk is full, or the network fails.
    """
    library = _import_library()
    _check_name(library, repository)
    path = Path(repository.split("/")[1] if out is None else out)
    check_place(path)
    api = library.HfApi()
    with _shorten_errors(repository, api.endpoint, revision):
        found = api.model_info(repository, revision=revision, files_metadata=True, timeout=_PATIENCE)
    names = _choose_files(repository, {file.rfilename: file.size for file in found.siblings or []})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.make_temporary_folder(path.absolute().parent, path.name) as folder:
            for name in names:
                # All from the listed commit, even if something is pushed in the meantime.
                with _shorten_errors(repository, api.endpoint, found.sha):
                    api.hf_hub_download(repository, name, revision=found.sha, local_dir=folder)
            try:
                bundle = Bundle.load(folder)
            except ShiftViTError as error:
                raise ShiftViTError(str(error).replace(repr(str(folder)), repr(repository))) from error
            return bundle.save(path)
    except OSError as error:
        raise files.explain_unwritable(path, error) from error


def _import_library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ShiftViTError(f"push and pull need huggingface_hub; {suggest_install('huggingface_hub')}") from error
    return huggingface_hub


def _check_name(library: Any, repository: str) -> None:
    """Raises ShiftViTError unless the name is OWNER/NAME by the Hub's rules."""
    try:
        library.utils.validate_repo_id(repository)
        fits = repository.count("/") == 1
    except library.errors.HFValidationError:
        fits = False
    if not fits:
        raise ShiftViTError(
            f"{repository!r} is not a repository; write OWNER/NAME in letters, digits, '-', '_' and '.', as in me/pets"
        )


def _choose_files(repository: str, sizes: Mapping[str, int | None]) -> list[str]:
    """Returns the files to download, from a listing of names and bytes."""
    missing = [name for name in (MANIFEST, WEIGHTS) if name not in sizes]
    if missing:
        raise ShiftViTError(f"{repository!r} is not a bundle: it has no {missing[0]}; choose one that shiftvit pushed")
    names = []
    for name, largest in _LARGEST.items():
        size = sizes.get(name, -1)
        if size is None or size > largest:
            if name == CARD:
                continue
            shown = "unknown" if size is None else f"{size:,}"
            raise ShiftViTError(
                f"{name!r} in {repository!r} has {shown} bytes, but at most {largest:,} are allowed; nothing was "
                "downloaded, choose another repository"
            )
        names += [name] if size >= 0 else []
    return names


@contextlib.contextmanager
def _shorten_errors(repository: str, endpoint: str, revision: str | None = None) -> Iterator[None]:
    """Turns an error of the client into one line; its messages never contain a token."""
    errors = _import_library().errors
    try:
        yield
    except (ShiftViTError, MemoryError):
        raise
    except Exception as error:  # errors of the network library, which depends on the client's version
        chain: list[BaseException] = [error]  # the client wraps the original error, once or twice
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        met = next((link for link in chain if isinstance(link, errors.HfHubHTTPError)), chain[-1])
        if isinstance(met, errors.HfHubHTTPError):
            raise ShiftViTError(_explain_refusal(met, repository, endpoint, revision)) from error
        if isinstance(met, errors.OfflineModeIsEnabled):
            raise ShiftViTError(f"HF_HUB_OFFLINE is set, so {endpoint} is not contacted; unset it") from error
        if isinstance(met, OSError) and met.errno in _FULL:
            raise files.explain_unwritable(Path(met.filename or "."), met) from error
        raise ShiftViTError(
            f"{endpoint} cannot be used ({type(met).__name__}: {take_first_line(met)}); check the network, "
            "and HF_ENDPOINT if it is set"
        ) from error


def _explain_refusal(error: Any, repository: str, endpoint: str, revision: str | None) -> str:
    """Returns the meaning of an error status of the Hub, and what to do."""
    errors, status = _import_library().errors, error.response.status_code
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository!r} has no revision {revision!r}; give a branch, a tag or a commit, or leave it out"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository!r} is gated; request access at {endpoint}/{repository}, then: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no repository {repository!r}; check the name; if it is private: hf auth login"
    if status == 401:
        return f"{endpoint} rejects the token; create a new one and log in: hf auth login"
    if status == 403:
        return f"this token has no access to {repository!r} at {endpoint}; log in with one that has: hf auth login"
    if status == 429 or status >= 500:
        return f"{endpoint} is overloaded or failing (status {status}); try again later"
    reason = take_first_line((error.server_message or "").strip() or error)
    return f"{endpoint} rejects the request for {repository!r} (status {status}: {reason})"
