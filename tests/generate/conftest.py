"""A tiny model with random weights, and a tokenizer trained on a few words."""

import pytest

from gpt2x.data.tokenizers import byte_level_bpe
from tests.support.generation import MODEL


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level_bpe.train(["the cat sat on the mat and the dog sat on the log " * 3], 300)


@pytest.fixture(scope="session")
def net(hardware):
    from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights

    net = GPT2(MODEL, hardware)
    load_weights(net, initial_weights(MODEL, seed=3))
    return net


@pytest.fixture(scope="session")
def generator(net, hardware, tokenizer):
    from gpt2x.generate import Generator

    return Generator(net, MODEL, hardware, tokenizer)


@pytest.fixture(scope="session")
def saved(tmp_path_factory, net, tokenizer):
    """The tiny model as a gpt2x checkpoint."""
    from gpt2x.checkpoint import save
    from gpt2x.model.gpt2 import logical_weights

    folder = tmp_path_factory.mktemp("predict") / "tiny"
    weights = {"weights": logical_weights(net, MODEL)}
    save(folder, tensors=weights, model=MODEL, run_config={}, loop_state={}, tokenizer_dir_writer=tokenizer.save)
    return folder
