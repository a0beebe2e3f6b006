"""Compressed models on the Hub: card, weights, configuration and report in one commit, or none of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.folder import require_whole
from heat_hf.encoders.checkpoints.names import CARD_NAME, REPORT_NAME
from heat_hf.encoders.checkpoints.storage import temporary_directory

_ADVICE = {
    401: "the Hub does not accept the token: log in with `hf auth login`, or pass token",
    403: "the token may not write there: make one with write access",
    404: "there is no such repository or revision, or the token may not see it",
    409: "somebody else changed the repository meanwhile: push again",
    412: "somebody else pushed to the revision meanwhile: push again",
    429: "the Hub asks to wait, too many requests: push again later",
}


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload a model factorized by heat_hf",
    create_pr: bool = False,
) -> Any:  # noqa: ANN401
    """Push a saved compressed model as one commit; the repository is made if it is not there.

    Args:
        folder: made by `save_compressed`, card included.
        repo_id: "name" or "owner/name".
        private: whether a new repository is private; default: the owner's setting.
        revision: branch; made if it is not there. Default: "main".
        token: default: the one logged in with.
        commit_message: of the commit.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        FileNotFoundError: if the folder has no compressed model, or no card.
        OSError, ValueError: if the folder is damaged, see `require_whole`.
        OSError: if the Hub refuses or cannot be reached; the message says whether a repository was made and is still empty.
    """
    from huggingface_hub import HfApi

    path = Path(folder)
    for name in (REPORT_NAME, CARD_NAME, "config.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} has no {name}: save the model with heat_hf, with a card, before pushing it")
    require_whole(path)
    api = HfApi(token=token)
    with _explained(f"cannot make the repository {repo_id}"):
        full, existed = _repository(api, repo_id, private)
        if revision is not None and not create_pr:
            api.create_branch(full, branch=revision, exist_ok=True)
    left = f"nothing of the model is in {full}" if existed else f"the new repository {full} is still empty"
    with _explained(f"the push failed, {left}"):
        return api.upload_folder(
            repo_id=full, folder_path=path, revision=revision, commit_message=commit_message, create_pr=create_pr
        )  # fmt: skip


def push_saved(save: Callable[[Path], None], repo_id: str, **hub: Any) -> Any:  # noqa: ANN401
    """Push what `save` writes into a scratch folder named as the repository; `hub`, result and errors as of `push_folder`."""
    with temporary_directory() as scratch:
        folder = scratch / repo_id.rsplit("/", 1)[-1]
        save(folder)
        return push_folder(folder, repo_id, **hub)


def _repository(api: Any, repo_id: str, private: bool | None) -> tuple[str, bool]:  # noqa: ANN401
    """The repository's full name, and whether it was there before."""
    from huggingface_hub import errors

    try:
        return api.create_repo(repo_id, private=private).repo_id, False
    except errors.HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 409:
            raise
    return api.create_repo(repo_id, private=private, exist_ok=True).repo_id, True


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the Hub's errors into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = _ADVICE.get(status or 0, "the Hub has a problem: push again later" if (status or 0) >= 500 else str(error))
        raise OSError(f"{what}: {advice} (HTTP {status})") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise OSError(f"{what}: the Hub cannot be reached ({error})") from error
