"""Downloads: which addresses, how much, and what is in the archive."""

import http.server
import threading
import zipfile

import pytest

from gpt2x.data.reading import download
from gpt2x.data.reading.download import fetch_archive
from gpt2x.errors import UserError


@pytest.fixture
def web(tmp_path):
    """A server of this machine; yields its address and the paths that redirect, to be filled."""
    folder = tmp_path / "web"
    folder.mkdir()
    redirects = {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def do_GET(self):
            if self.path in redirects:
                self.send_response(302)
                self.send_header("Location", redirects[self.path])
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../outside", "x")
        file.writestr("inside", "x" * 1000)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", redirects
        server.shutdown()


def test_an_address_that_others_could_answer_is_rejected(tmp_path):
    for url in ("http://example.com/a.zip", "ftp://example.com/a.zip"):
        with pytest.raises(UserError, match=r"is not https.*Give its https address, or its dataset.sha256"):
            fetch_archive(url, None, tmp_path / "cache")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_leave_the_web_never(web, tmp_path, target):
    url, redirects = web
    redirects["/b.zip"] = target
    with pytest.raises(UserError, match=r"cannot be downloaded"):
        fetch_archive(f"{url}/b.zip", None, tmp_path / "cache")


def test_members_stay_inside(web, tmp_path):
    folder, _ = fetch_archive(f"{web[0]}/a.zip", None, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["archive.sha256", "inside", "outside"]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_BYTES", 50, "it has more than 50 bytes"),
        ("MAX_UNPACKED_BYTES", 500, "the archive has 2 files of 1,001 bytes, more than"),
        ("MAX_MEMBERS", 1, "the archive has 2 files of 1,001 bytes, more than"),
    ],
)
def test_sizes_are_bounded(web, tmp_path, monkeypatch, limit, value, message):
    monkeypatch.setattr(download, limit, value)
    with pytest.raises(UserError, match=message):
        fetch_archive(f"{web[0]}/a.zip", None, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
