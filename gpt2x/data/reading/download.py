"""Downloads with a checksum: all or nothing."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

from gpt2x.errors import UserError

TIMEOUT_S = 20
CHUNK_BYTES = 1 << 20
MAX_BYTES = 4 << 30  # of an archive
MAX_UNPACKED_BYTES = 16 << 30
MAX_MEMBERS = 10_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")  # nobody is on the way


def fetch_archive(url: str, sha256: str | None, cache: Path) -> tuple[Path, str]:
    """Download a zip archive once and unpack it.

    Args:
        url: https or file; http only with a sha256, or of this machine. So must be every address it redirects to.
        sha256: The archive must have it; None: any archive is accepted.
        cache: The files go to `cache/downloads/<hash of the url>/`, which appears only when complete.

    Returns:
        The folder of the unpacked files, and the sha256 of the archive.

    Raises:
        UserError: The server cannot be reached, a different checksum, or no zip archive. No file is left.
    """
    target = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    record = target / "archive.sha256"
    if record.is_file():
        actual = record.read_text(encoding="utf-8").strip()
        _check(
            url, actual, sha256, f"Remove {target} to download again, or accept this archive with dataset.sha256=null."
        )
        return target, actual
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
    except OSError as error:
        raise UserError(f"paths.cache={cache} cannot be written: {error.strerror}. Give another directory.") from error
    try:
        archive = temporary / "archive.zip"
        actual = _download(url, sha256, archive)
        _check(url, actual, sha256, "Accept any archive with dataset.sha256=null, or give dataset.path.")
        try:
            with zipfile.ZipFile(archive) as file:
                _check_members(url, file)
                file.extractall(temporary)  # drops leading slashes and `..` itself, and creates no links
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise UserError(f"dataset.url={url} is not a zip archive: {error}. Give dataset.path instead.") from error
        archive.unlink()
        (temporary / record.name).write_text(actual + "\n", encoding="utf-8")
        if not target.exists():
            os.rename(temporary, target)
    except FileExistsError:
        pass  # another process was first
    except OSError as error:
        if not target.exists():
            raise UserError(f"paths.cache={cache} cannot be written: {error}. Give another directory.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target, actual


def _download(url: str, sha256: str | None, file: Path) -> str:
    digest = hashlib.sha256()
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("https", "file") and not (sha256 or address.hostname in LOOPBACK):
        raise UserError(
            f"dataset.url={url} is not https, so anybody on the way could change the archive. Give its https address, "
            "or its dataset.sha256."
        )
    try:
        opener = urllib.request.build_opener(_Redirects)  # with the proxies of the environment
        with opener.open(url, timeout=TIMEOUT_S) as answer, file.open("wb") as out:
            expected = answer.headers.get("Content-Length")
            while chunk := answer.read(CHUNK_BYTES):
                if out.tell() + len(chunk) > MAX_BYTES:
                    raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
                digest.update(chunk)
                out.write(chunk)
            if expected is not None and out.tell() != int(expected):
                raise OSError(f"{out.tell()} of {expected} bytes arrived")
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError, a timeout, a malformed address
        reason = getattr(error, "reason", error)
        host = urllib.parse.urlsplit(url).netloc or url
        raise UserError(
            f"dataset.url={url} cannot be downloaded from {host}: {reason}. Without a network, give dataset.path= a "
            f"folder that has the files, or use dataset=pydocs, which needs none."
        ) from error
    return digest.hexdigest()


def _check_members(url: str, file: zipfile.ZipFile) -> None:
    """Reject an archive that would unpack to more than a corpus has; zipfile writes no more than the sizes say."""
    members = file.infolist()
    unpacked = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
        raise UserError(
            f"dataset.url={url}: the archive has {len(members):,} files of {unpacked:,} bytes, more than the "
            f"{MAX_MEMBERS:,} files and {MAX_UNPACKED_BYTES:,} bytes that are unpacked. Unpack it yourself, and give "
            "dataset.path."
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses as safe as the first."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """Return the next request; its address may be https, or http if the first was."""
        schemes = {"https"} if req.full_url.startswith("https:") else {"http", "https"}
        if urllib.parse.urlsplit(newurl).scheme not in schemes:
            raise ValueError(f"it redirects to {newurl}, which is no https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(url: str, actual: str, expected: str | None, fix: str) -> None:
    if expected is not None and actual != expected.lower():
        raise UserError(f"dataset.sha256={expected}, but the archive of dataset.url={url} has sha256 {actual}. {fix}")
