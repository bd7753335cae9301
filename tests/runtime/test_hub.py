"""The Hugging Face hub, as a cache that huggingface_hub wrote and as a server that speaks its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2x.errors import UserError
from gpt2x.runtime.hub import Wish, check_blob, check_blobs, fetch, names_repository, pinned
from tests.support.hub import COMMIT, Hub, fill_cache, hub_at

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WISH = Wish((("config.json",), WEIGHTS), ("tokenizer.json", "merges.txt"))
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


def repository(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(f"content of {file}" * 50)
    return folder


def load(name: str) -> Path:
    return fetch("load", name, WISH, "Give a directory.")


def message(name: str) -> str:
    with pytest.raises(UserError) as error:
        load(name)
    return str(error.value)


def test_only_a_name_without_a_path_is_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "openai-community/gpt2", "a/b@main", "a/b@refs/pr/1", "out/run1", "gpt2_tiny", "a/b-1.5"):
        assert names_repository(name), name
    for name in ("./gpt2", "/gpt2", "~/gpt2", "a/b/c", "a b", "", "..", "../gpt2", "gpt2/", "file://gpt2", "a\\b"):
        assert not names_repository(name), name
    Path("gpt2").mkdir()
    Path("openai-community").mkdir()
    Path("openai-community/gpt2").write_text("")
    assert not names_repository("gpt2")
    assert not names_repository("openai-community/gpt2")


def test_only_the_needed_files_are_downloaded(hub, tmp_path):
    files = ("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "model.onnx", "tokenizer.json")
    hub.repositories["someone/gpt2"] = repository(tmp_path / "repository", *files)
    with hub_at(hub.endpoint, tmp_path / "cache"):
        path = load("someone/gpt2")
        assert path == tmp_path / "cache/models--someone--gpt2/snapshots" / COMMIT
        assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert all(file.is_symlink() for file in path.iterdir())
        assert (path / "config.json").read_text() == (tmp_path / "repository/config.json").read_text()
        assert pinned("someone/gpt2", path) == f"someone/gpt2@{COMMIT}"
        assert sorted(hub.downloads()) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert load("someone/gpt2") == path
    for name in ("someone/gpt2", f"someone/gpt2@{COMMIT}"):
        with hub_at(NOWHERE, tmp_path / "cache"):  # no network: the cache answers
            assert load(name) == path
        with hub_at(hub.endpoint, tmp_path / "cache", offline=True):
            assert load(name) == path
    hub.requests.clear()
    with hub_at(hub.endpoint, tmp_path / "cache"):  # a commit cannot change
        assert load(f"someone/gpt2@{COMMIT}") == path
    assert not hub.requests
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert load("someone/gpt2") == path
    assert not hub.downloads()


def test_shards_and_only_bin(hub, tmp_path):
    folder = repository(tmp_path / "repository", "config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "x.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin", "c": "pytorch_model-1.bin"}}
    (folder / WEIGHTS[-1]).write_text(json.dumps(index))
    hub.repositories["gpt2"] = folder
    with hub_at(hub.endpoint, tmp_path / "cache"):
        names = sorted(file.name for file in load("gpt2").iterdir())
    assert names == ["config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "pytorch_model.bin.index.json"]
    (folder / "pytorch_model-2.bin").unlink()
    with hub_at(hub.endpoint, tmp_path / "other"):
        assert "a repository of the hub" in message("gpt2")
        assert "has no pytorch_model-2.bin" in message("gpt2")


def test_a_new_revision_replaces_the_cached_one_unless_a_commit_is_typed(hub, tmp_path):
    old, new = repository(tmp_path / "old", "config.json", WEIGHTS[0]), tmp_path / "new"
    repository(new, "config.json", WEIGHTS[0], "tokenizer.json")
    fill_cache(tmp_path / "cache", "a/b", old)
    later = COMMIT[::-1]
    hub.repositories["a/b"], hub.revisions = new, {"main": later, later: later}
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert load("a/b").name == later
        assert (load("a/b") / "tokenizer.json").is_file()
    with hub_at(hub.endpoint, tmp_path / "cache", offline=True):
        assert load("a/b").name == later
        assert load(f"a/b@{COMMIT}").name == COMMIT


def test_a_tag_or_branch(hub, tmp_path):
    hub.repositories["a/b"] = repository(tmp_path / "repository", "config.json", WEIGHTS[2])
    hub.revisions["v1"] = COMMIT
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert load("a/b@v1").name == COMMIT
        assert message("a/b@v2") == (
            f"load=a/b@v2: the cache of the Hugging Face hub ({tmp_path / 'cache'}) has no config.json of this "
            f"repository at revision v2, and {hub.endpoint} has the repository, but not the revision v2. Give a "
            "directory."
        )
    with hub_at(hub.endpoint, tmp_path / "cache", offline=True):
        assert load("a/b@v1").name == COMMIT
        assert "no config.json of this repository at revision main, and HF_HUB_OFFLINE=1 forbids" in message("a/b")


def test_what_is_nowhere_is_said_with_both_meanings(hub, tmp_path):
    fill_cache(tmp_path / "cache", "openai-community/gpt2", repository(tmp_path / "gpt2", "config.json"))
    start = f"is no local directory, and as the name of a repository of the Hugging Face hub it is not in the cache ({tmp_path / 'cache'}); "  # noqa: E501
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert message("out/run1") == (
            f"load=out/run1 {start}{hub.endpoint} has no such repository, or it is private and HF_TOKEN does not open "
            "it. Give a directory."
        )
        assert "it cannot be the name of a repository" in message("a--b/c")
    with hub_at(hub.endpoint, tmp_path / "cache", offline=True):
        offline = "HF_HUB_OFFLINE=1 forbids to download. Give a directory."
        assert message("gpt3") == f"load=gpt3 {start}{offline}"
        assert message("gpt2") == f"load=gpt2 {start}did you mean openai-community/gpt2? {offline}"
        assert "did you mean openai-community/gpt2? " in message("openai-comunity/gtp2")
        assert "is not in the cache" in message("a--b/c")
    with hub_at(NOWHERE, tmp_path / "cache"):
        assert f"the connection to {NOWHERE} failed (" in message("gpt3")


def test_a_cache_that_lacks_the_weights(tmp_path):
    fill_cache(tmp_path / "cache", "a/b", repository(tmp_path / "a", "config.json"))
    with hub_at(NOWHERE, tmp_path / "cache"):
        answer = message("a/b")
    assert f"has none of {', '.join(WEIGHTS)} of this repository" in answer
    assert "failed (" in answer


def test_other_formats_only(hub, tmp_path):
    hub.repositories["a/b"] = repository(tmp_path / "a", "config.json", "tf_model.h5")
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert message("a/b") == (
            f"load=a/b is a repository of the hub ({hub.endpoint}) that has none of {', '.join(WEIGHTS)}. "
            "Give a directory."
        )
    assert hub.downloads() == ["config.json"]


def test_a_gated_repository(hub, tmp_path, monkeypatch):
    hub.repositories["a/b"] = repository(tmp_path / "a", "config.json", WEIGHTS[0])
    hub.gated.add("a/b")
    with hub_at(hub.endpoint, tmp_path / "cache"):
        for token in (None, "hf_x"):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            answer = message("a/b")
            assert f"accepted its terms at {hub.endpoint}/a/b; set HF_TOKEN" in answer
            assert hub.token == (token and f"Bearer {token}")
    fill_cache(tmp_path / "cache", "a/b", tmp_path / "a")
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert load("a/b").name == COMMIT


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_hub_that_answers_with_an_error(hub, tmp_path, status):
    hub.status = status
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert f"{hub.endpoint} answers {status}" in message("a/b")
    fill_cache(tmp_path / "cache", "a/b", repository(tmp_path / "a", "config.json", WEIGHTS[0]))
    with hub_at(hub.endpoint, tmp_path / "cache"):
        assert load("a/b").name == COMMIT


@pytest.mark.parametrize("file", ["config.json", WEIGHTS[0], "tokenizer.json"])
def test_an_interrupted_download_is_continued(hub, tmp_path, file, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.repositories["a/b"] = repository(tmp_path / "a", "config.json", WEIGHTS[0], "tokenizer.json")
    hub.cut.add(file)
    with hub_at(hub.endpoint, tmp_path / "cache"):
        answer = message("a/b")
        assert answer.startswith(f"load=a/b: the download of {file} failed: ")
        assert answer.endswith("Type the same command again: what has arrived is in the cache.")
        hub.cut.clear()
        path = load("a/b")
    assert all((path / name.name).read_bytes() == name.read_bytes() for name in (tmp_path / "a").iterdir())


def test_a_disk_that_is_full_or_may_not_be_written(hub, tmp_path):
    hub.repositories["a/b"] = repository(tmp_path / "a", "config.json", WEIGHTS[0])
    (tmp_path / "cache").write_text("a file")
    with hub_at(hub.endpoint, tmp_path / "cache"):
        answer = message("a/b")
    assert answer.startswith("load=a/b: the download of config.json failed: ")
    assert str(tmp_path / "cache") in answer


DAMAGE = {
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["config.json", WEIGHTS[0]])
def test_a_damaged_file_of_the_cache_is_named(tmp_path, file, damage):
    snapshot = fill_cache(tmp_path / "cache", "a/b", repository(tmp_path / "a", "config.json", WEIGHTS[0]))
    check_blobs(snapshot, [*WISH.names, "no such file"])
    blob = (snapshot / file).resolve()
    blob.write_bytes(DAMAGE[damage](blob.read_bytes()))
    with pytest.raises(UserError) as error:
        check_blobs(snapshot, WISH.names)
    assert str(error.value) == (
        f"{snapshot / file} is damaged: its content does not have the hash that it is named by in the cache of the "
        f"Hugging Face hub. Delete {blob} and download it again. With the name a/b instead of a path, gpt2x downloads "
        "what the cache lacks."
    )
    check_blobs(snapshot, {"config.json", WEIGHTS[0]} - {file})


def test_a_deleted_file_of_the_cache_is_downloaded_again(hub, tmp_path):
    hub.repositories["a/b"] = repository(tmp_path / "a", "config.json", WEIGHTS[0])
    with hub_at(hub.endpoint, tmp_path / "cache"):
        path = load("a/b") / WEIGHTS[0]
        path.write_bytes(b"")
        fetch.cache_clear()
        with pytest.raises(UserError, match="is damaged"):
            check_blob(load("a/b") / WEIGHTS[0])
        path.resolve().unlink()
        fetch.cache_clear()
        check_blob(load("a/b") / WEIGHTS[0])
        assert path.read_bytes() == (tmp_path / "a" / WEIGHTS[0]).read_bytes()


def test_only_links_into_the_cache_are_compared_with_their_names(tmp_path):
    """Links may lead to the snapshot, and from a blob to a file that repositories share under another hash's name."""
    blobs = tmp_path / "models--a/blobs"
    snapshot = tmp_path / "models--a/snapshots/1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    name = "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object` of the line hello
    (tmp_path / ("5" * 64)).write_text("hello\n")
    (blobs / name).symlink_to(tmp_path / ("5" * 64))
    (snapshot / "config.json").symlink_to(f"../../blobs/{name}")
    (tmp_path / "mine").symlink_to(snapshot)
    (tmp_path / "config.json").symlink_to("mine/config.json")
    for path in (snapshot, tmp_path / "mine", tmp_path):
        check_blob(path / "config.json")
    (tmp_path / ("5" * 64)).write_text("hello")
    for path in (snapshot, tmp_path / "mine", tmp_path):
        with pytest.raises(UserError, match=f"Delete {tmp_path}/{'5' * 64} and"):
            check_blob(path / "config.json")
    (tmp_path / "copy").write_text("hello")  # as `cp -L` writes it
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to(blobs / ("0" * 40))
    (blobs / "an-etag").write_text("x")
    (tmp_path / "unnamed").symlink_to(blobs / "an-etag")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_text("x")
    (tmp_path / "foreign").symlink_to(tmp_path / "blobs" / name)
    check_blobs(tmp_path, ["copy", "circle", "dangling", "unnamed", "foreign", "absent", "."])


def test_a_hash_that_was_computed_already(tmp_path):
    snapshot = fill_cache(tmp_path / "cache", "a/b", repository(tmp_path / "a", "config.json", WEIGHTS[0]))
    check_blob(snapshot / WEIGHTS[0], (snapshot / WEIGHTS[0]).resolve().name)
    with pytest.raises(UserError, match="is damaged"):
        check_blob(snapshot / WEIGHTS[0], "0" * 64)
    check_blob(snapshot / "config.json", "0" * 64)  # named by its other hash
