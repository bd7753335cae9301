"""The Hugging Face hub: the one place that finds files in its cache, checks them, and downloads into it.

Cache, token, endpoint and offline mode are those of huggingface_hub: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE. As there, the hub is asked for the newest revision, and the cache answers if the hub cannot be reached.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpt2x.errors import UserError, did_you_mean

NAME = re.compile(r"(?P<repository>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w-][\w./-]*))?")
TIMEOUT_S = 5  # of the first question; huggingface_hub waits twice as long for each file
INDEX = ".index.json"  # ends the name of a file that lists shards
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # the name of a file's content: SHA-1 of git's object, or SHA-256
REPOSITORIES = re.compile(r"(models|datasets|spaces)--(?P<name>.+)")  # folders of the cache


def names_repository(name: str) -> bool:
    """Return whether `name` can only mean a repository of the hub: OWNER/NAME or NAME, where no such path exists.

    A revision may follow: NAME@REVISION.
    """
    return NAME.fullmatch(name) is not None and not Path(name).exists()


def pinned(name: str, snapshot: Path) -> str:
    """Return the name of a repository with the commit that was read; a path as it is.

    Args:
        name: a repository or a path.
        snapshot: the folder that `fetch` returned for it.
    """
    return f"{name.partition('@')[0]}@{snapshot.name}" if names_repository(name) else name


@dataclass(frozen=True)
class Wish:
    """The files of a repository that are needed.

    Attributes:
        required: groups of files. Of each, the first that exists is needed, and the shards that it lists.
        optional: files that a repository may lack.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The files by name, without the shards that one of them may list."""
        return [*(file for group in self.required for file in group), *self.optional]


@cache  # so that all parts of a process read the same revision
def fetch(key: str, name: str, wish: Wish, fix: str) -> Path:
    """Return the folder with the requested files of a repository, from the cache or downloaded into it.

    Args:
        key: of the configuration, for messages.
        name: the repository, with @REVISION if it is not the newest of its main branch.
        wish: the files.
        fix: what to type instead, for messages.

    Raises:
        UserError: says why a file is neither in the cache nor can be downloaded.
    """
    repository = _Repository(key, name, wish, fix)
    folder = None
    for group in wish.required:
        path = next((path for file in group if (path := repository.get(file))), None)
        if path is None:
            raise repository.error(group)
        folder = folder or path.parent
        if path.name.endswith(INDEX):
            for shard in _shards(path):
                if repository.get(shard) is None:
                    raise repository.error((shard,))
    for file in wish.optional:
        repository.get(file)
    assert folder is not None
    return folder


def check_blobs(folder: Path, names: Iterable[str]) -> None:
    """Check those of the files in a folder that exist and that the cache names by their content.

    Raises:
        UserError: a file is damaged.
    """
    for name in names:
        check_blob(folder / name)


def check_blob(path: Path, sha256: str | None = None) -> None:
    """Compare a file of the cache with the hash that is its name there; do nothing for any other file.

    A snapshot in the cache has links to `blobs/HASH`: the SHA-256 of a large file (git LFS), git's SHA-1 of a small one
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).

    Args:
        path: the file, or a link to it.
        sha256: the hash of its content, if that has been computed already.

    Raises:
        UserError: the content has a different hash, so it was damaged or not written to its end.
    """
    blob = _blob(path)
    if blob is None:
        return
    is_large = len(blob.name) == hashlib.sha256().digest_size * 2
    if is_large and sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if blob.name == sha256 or (not is_large and blob.name == _git_hash(path)):
        return
    folder = REPOSITORIES.fullmatch(blob.parents[1].name)
    assert folder is not None
    raise UserError(
        f"{path} is damaged: its content does not have the hash that it is named by in the cache of the Hugging Face "
        f"hub. Delete {path.resolve()} and download it again. With the name {folder['name'].replace('--', '/')} "
        "instead of a path, gpt2x downloads what the cache lacks."
    )


def _blob(path: Path) -> Path | None:
    """Return the `blobs/HASH` of a repository to which a link in the cache leads; None for any other file."""
    if not path.is_file():
        return None
    while path.is_symlink():
        path = path.parent.resolve() / path.readlink()
        folder = path.parent.resolve()
        if folder.name == "blobs" and BLOB.fullmatch(path.name) and REPOSITORIES.fullmatch(folder.parent.name):
            return folder / path.name  # which can be a link to a file that several repositories share
    return None


def _git_hash(path: Path) -> str:
    """Return the SHA-1 that git gives to the content of a file (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Repository:
    """A repository: its files are taken from the cache, and from the hub if that can be reached.

    Attributes:
        revision: the branch, tag or commit; a commit as soon as one file has been read.
        fault: why nothing can be downloaded; "" if the hub answers.
    """

    def __init__(self, key: str, name: str, wish: Wish, fix: str) -> None:
        match = NAME.fullmatch(name)
        assert match is not None
        self.key, self.name, self.fix = key, name, fix
        self.repository = match["repository"]
        self.revision = match["revision"] or "main"
        first = wish.required[0][0]
        # a commit does not change, so the hub need not be asked for what the cache has of it
        is_settled = self._is_commit and all(self._cached(file) is not None for file in (first, *wish.optional))
        self.fault = "" if is_settled else self._fault(first)

    @property
    def _is_commit(self) -> bool:
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def _fault(self, first: str) -> str:
        """Ask the hub for a file, and return why it does not answer."""
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError

        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE=1 forbids to download"
        try:
            url = huggingface_hub.hf_hub_url(self.repository, first, revision=self.revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_S)
        except EntryNotFoundError:
            return ""  # the repository is there
        except Exception as error:  # of huggingface_hub, or of the HTTP client that its version uses
            return _reason(error, self.repository, self.revision)
        return ""

    def _cached(self, file: str) -> str | object | None:
        """Return the path of a file in the cache, a mark that the repository lacks it, or None."""
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            return huggingface_hub.try_to_load_from_cache(self.repository, file, revision=self.revision)
        except HFValidationError:  # no name of a repository, such as a..b; the question to the hub has said so
            return None

    def get(self, file: str) -> Path | None:
        """Return the path of a file; None if the repository lacks it, or if it cannot be downloaded.

        Raises:
            UserError: the hub answers, and the download fails.
        """
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cached = self._cached(file)
        if (self._is_commit or self.fault) and cached is not None:
            path = cached if isinstance(cached, str) else None
        elif self.fault:
            path = None
        else:
            try:
                path = huggingface_hub.hf_hub_download(self.repository, file, revision=self.revision)
            except LocalEntryNotFoundError as error:
                raise self._failed(file, error.__cause__ or error) from error
            except EntryNotFoundError:
                return None
            except Exception as error:  # as in _fault
                raise self._failed(file, error) from error
        if path is None:
            return None
        if "/" not in file:
            self.revision = Path(path).parent.name  # all files are of one commit
        return Path(path)

    def _failed(self, file: str, error: BaseException) -> UserError:
        reason = _reason(error, self.repository, self.revision)
        return UserError(
            f"{self.key}={self.name}: the download of {file} failed: {reason}. Type the same command again: what has "
            "arrived is in the cache."
        )

    def error(self, files: Sequence[str]) -> UserError:
        """Return the error for files of which the repository has none."""
        from huggingface_hub import constants

        absent = f"none of {', '.join(files)}" if len(files) > 1 else f"no {files[0]}"
        if not self.fault:
            return UserError(
                f"{self.key}={self.name} is a repository of the hub ({constants.ENDPOINT}) that has {absent}. "
                f"{self.fix}"
            )
        others = _cached_repositories()
        if self.repository in others:
            return UserError(
                f"{self.key}={self.name}: the cache of the Hugging Face hub ({constants.HF_HUB_CACHE}) has "
                f"{absent} of this repository at revision {self.revision}, and {self.fault}. {self.fix}"
            )
        last = self.repository.rpartition("/")[2]
        namesakes = [other for other in others if other.rpartition("/")[2] == last]
        hint = f"did you mean {namesakes[0]}? " if namesakes else did_you_mean(self.repository, others)
        return UserError(
            f"{self.key}={self.name} is no local directory, and as the name of a repository of the Hugging Face hub it "
            f"is not in the cache ({constants.HF_HUB_CACHE}); {hint}{self.fault}. {self.fix}"
        )


def _shards(index: Path) -> list[str]:
    """Return the files that an index of shards lists; none if it cannot be read, which its reader reports."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({file for file in weight_map.values() if isinstance(file, str)})
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []


def _cached_repositories() -> list[str]:
    """Return the names of the models in the cache."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _reason(error: BaseException, repository: str, revision: str) -> str:
    """Return what an error of huggingface_hub means, with the fix if there is one."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{endpoint} gives its files only to accounts that have accepted its terms at {endpoint}/{repository}; "
            "set HF_TOKEN to a token of yours"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or it is private and HF_TOKEN does not open it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{endpoint} has the repository, but not the revision {revision}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{endpoint} answers {status}: set HF_TOKEN to a token that may read this repository"
    if status is not None:
        return f"{endpoint} answers {status}"
    text = (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__
    if isinstance(error, errors.HFValidationError):
        return f"it cannot be the name of a repository ({text})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror})"
    return f"the connection to {endpoint} failed ({text})"
