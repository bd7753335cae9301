"""The tiny model that the tests of decoding complete text with."""

from gpt2x.config import ModelConfig
from gpt2x.generate.decoder import Graph

MODEL = ModelConfig(
    name="tiny", num_layers=2, num_heads=2, hidden_size=32, max_seq_len=80, vocab_size=300, pad_vocab_multiple=128,
    initializer_range=0.3,
)  # fmt: skip


def num_graphs(slots):
    """How many graphs slots have compiled, those compiled again among them; kernels need none."""
    cells = {*slots._decoders.values(), *slots._likeliest.values(), *slots._entries.values()}
    return sum(len(cell.compile_cache) for cell in cells if isinstance(cell, Graph))
