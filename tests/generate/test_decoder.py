"""The cache gives what the full forward pass gives, without compiling again and without touching the model."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.config import GenerationConfig
from gpt2x.generate.completion import Generator
from gpt2x.generate.decoder import Decoder
from gpt2x.generate.fused import is_fused
from gpt2x.generate.lengths import LEAST_BUCKET, bucket
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
from tests.support.generation import MODEL, num_graphs

LENGTHS = [3, 17, 1]
STEPS = 20


def ints(values):
    return Tensor(np.asarray(values, np.int32))


@pytest.fixture(scope="module")
def full_logits(net):
    """Logits of all positions of (B, 40) ids, by the training forward pass."""

    @ms.jit
    def forward(ids):
        return net.logits(net(ids, None))

    return lambda ids: forward(ints(ids)).asnumpy().reshape(*ids.shape, -1)


def test_cache_equals_full_forward_in_a_ragged_batch(net, hardware, full_logits):
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, (3, 40))
    expected = full_logits(ids)
    decoder = Decoder(net, batch_size=3, cache_len=64)
    rows = np.arange(3)
    last = np.array(LENGTHS) - 1
    prompts = np.where(np.arange(32) < np.array(LENGTHS)[:, None], ids[:, :32], 7)  # pads: any token
    for _ in range(2):  # the second time over what the first has left in the cache
        found = decoder(ints(prompts), ints(np.tile(np.arange(32), (3, 1))), ints(last)).asnumpy()
        np.testing.assert_allclose(found, expected[rows, last], atol=2e-5)
        for step in range(1, STEPS):
            places = last + step
            found = decoder(ints(ids[rows, places][:, None]), ints(places[:, None]), ints([0, 0, 0])).asnumpy()
            np.testing.assert_allclose(found, expected[rows, places], atol=2e-5)
    assert len(decoder.compile_cache) == 2  # prompt and step


def test_the_model_keeps_its_parameters(net, hardware):
    names = [parameter.name for parameter in net.get_parameters()]
    decoder = Decoder(net, batch_size=1, cache_len=32)
    assert [parameter.name for parameter in net.get_parameters()] == names
    assert not any("cache" in parameter.name for parameter in net.trainable_params())
    assert len({id(parameter) for parameter in decoder.get_parameters()}) == len(names) + 2 * MODEL.num_layers


def test_new_weights_are_seen_without_new_graphs(hardware, tokenizer):
    net = GPT2(MODEL, hardware)
    load_weights(net, initial_weights(MODEL, seed=1))
    generator = Generator(net, MODEL, hardware, tokenizer)
    config = GenerationConfig(max_new_tokens=8, eos_ids=[])
    before = generator.generate_ids([[1, 2, 3]], config, seed=0)
    load_weights(net, initial_weights(MODEL, seed=2))
    after = generator.generate_ids([[1, 2, 3]], config, seed=0)
    assert before != after
    fresh = GPT2(MODEL, hardware)
    load_weights(fresh, initial_weights(MODEL, seed=2))
    assert after == Generator(fresh, MODEL, hardware, tokenizer).generate_ids([[1, 2, 3]], config, seed=0)
    assert num_graphs(generator.slots) == (0 if is_fused(net) else 3)


def test_buckets():
    assert [bucket(n, 1024) for n in (1, 32, 33, 512, 513, 1024)] == [LEAST_BUCKET, 32, 64, 512, 1024, 1024]
    assert bucket(65, 80) == 80
    assert bucket(3, 16) == 16
