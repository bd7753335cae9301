"""A converted model that knows Shakespeare, and a text that it knows."""

import pytest

from gpt2x.config import TokenizerConfig


@pytest.fixture(scope="session")
def shakespeare_dir(shared_data):
    return shared_data / "checkpoints" / "shakespeare-a"


@pytest.fixture(scope="session")
def shakespeare(shakespeare_dir, hardware):
    from gpt2x.pretrained import load_pretrained

    return load_pretrained(str(shakespeare_dir), hardware, TokenizerConfig(name="checkpoint"))


@pytest.fixture(scope="session")
def text_file(shared_data, tmp_path_factory):
    """The first 6,000 characters of tinyshakespeare."""
    path = tmp_path_factory.mktemp("text") / "play.txt"
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    path.write_text(text[:6000], encoding="utf-8")
    return path
