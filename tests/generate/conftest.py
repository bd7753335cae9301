"""A tiny model with random weights, and a tokenizer trained on a few words."""

import pytest

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.data.tokenizers import byte_level_bpe

MODEL = ModelConfig(
    name="tiny", num_layers=2, num_heads=2, hidden_size=32, max_seq_len=80, vocab_size=300, pad_vocab_multiple=128,
    initializer_range=0.3,
)  # fmt: skip
CPU = HardwareConfig(
    name="cpu", device_target="CPU", precision="fp32", memory_gb=None, peak_tflops=None, devices_per_node=1,
    flash_attention=False, source="test",
)  # fmt: skip


def num_graphs(slots):
    """How many graphs slots have compiled, those compiled again among them."""
    cells = {*slots._decoders.values(), *slots._likeliest.values(), *slots._entries.values()}
    return sum(len(cell.compile_cache) for cell in cells)


@pytest.fixture(scope="session")
def hardware():
    from gpt2x.runtime.device import set_up_device

    set_up_device(CPU)
    return CPU


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
