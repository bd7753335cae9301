"""A Hugging Face hub for tests: a cache as huggingface_hub lays it out, and a server of repositories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from gpt2x.runtime.hub import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, repository: str, source: Path, *, commit: str = COMMIT, ref: str = "main") -> Path:
    """Put the files of a directory into a cache, as blobs with links; return the folder of the snapshot.

    As on the hub, weights are named by SHA-256 and other files by the SHA-1 of their git object.
    """
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for path in sorted(source.iterdir()):
        content = path.read_bytes()
        is_large = path.suffix in (".safetensors", ".bin")
        digest = hashlib.sha256(content) if is_large else hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        blob = folder / "blobs" / digest.hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return snapshot


class Hub(ThreadingHTTPServer):
    """A server of the URLs /OWNER/NAME/resolve/REVISION/FILE.

    Attributes:
        repositories: name -> directory of its files.
        gated: names of the repositories whose terms must be accepted.
        cut: files whose download ends before their end.
        requests: (method, file) of every request for a file.
        token: of the last request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Path] = {}
        self.revisions = {"main": COMMIT, COMMIT: COMMIT}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.token: str | None = None
        self.status = 200
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """Return the files that have been downloaded."""
        return [file for method, file in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(None)

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str | None) -> None:
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        hub = self.server
        if not file:  # such as /api/agent-harnesses
            return self.refuse(404, None)
        hub.requests.append((method or "HEAD", file))
        hub.token = self.headers.get("authorization")
        folder = hub.repositories.get(name)
        if hub.status != 200:
            return self.refuse(hub.status, None)
        if folder is None:
            return self.refuse(401, "RepoNotFound")
        if name in hub.gated:
            return self.refuse(403 if hub.token else 401, "GatedRepo")
        if revision not in hub.revisions:
            return self.refuse(404, "RevisionNotFound")
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (folder / file).read_bytes()
        start = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", hub.revisions[revision])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if method == "GET":
            self.wfile.write(content[start : len(content) // 2 if file in hub.cut else None])
            if file in hub.cut:
                self.close_connection = True
        return None

    def refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", self.server.revisions["main"])
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub_at(endpoint: str, cache: Path, *, offline: bool = False) -> Iterator[None]:
    """Have huggingface_hub use a server and a cache, as HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE would."""
    from huggingface_hub import constants

    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": offline,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(constants, name, value)
        fetch.cache_clear()
        yield
    fetch.cache_clear()
