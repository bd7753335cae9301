"""Packed rows against examples alone, and both against transformers with labels of -100 on prompts."""

import json

import numpy as np
import pytest

from gpt2x.config import DatasetConfig
from gpt2x.data.rows.instruction import IGNORED, encode, inputs_of, pack, tables
from gpt2x.data.sources.instructions import Instructions
from gpt2x.data.tokenizer import Tokenizer
from tests.support.models import build, tiny_model

SEQ_LEN = 160

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def alpaca(shared_data):
    """Real examples and their GPT-2 tokens, some of those that fit half a row."""
    path = shared_data / "alpaca" / "alpagasus_random_9k.json"
    config = DatasetConfig(name="alpaca", corpus="instructions", path=str(path), skip_empty=True)
    tokenizer = Tokenizer.load(shared_data / "gpt2-tokenizer")
    examples = Instructions(config, path.parent).examples("train")[:60]
    encoded = encode(examples, tokenizer)
    kept = [index for index, example in enumerate(encoded) if len(example.ids) <= SEQ_LEN // 2][:6]
    assert len(kept) == 6
    return [examples[index] for index in kept], [encoded[index] for index in kept], tokenizer


@pytest.fixture(scope="module")
def net(alpaca):
    return build(tiny_model(vocab_size=50257, max_seq_len=SEQ_LEN, num_layers=2))


def batch_of(rows, tokenizer):
    (columns,) = tables(rows, SEQ_LEN + 1, tokenizer.eos_id)
    return dict(zip(("input_ids", "attention_mask", "labels"), columns, strict=True))


def losses_by_example(net, places, encoded, tokenizer, *, packed):
    """The losses of each example's response, by its index."""
    from gpt2x.evaluate.scoring import Scorer

    batch = batch_of([[encoded[index] for index in row] for row in places], tokenizer)
    found = inputs_of(batch, width=SEQ_LEN if packed else None)
    losses = Scorer(net, len(places)).score(found.ids, found.starts if packed else None)
    result = {}
    for row, indices in enumerate(places):
        rest = losses[row][found.counted[row] > 0].tolist()
        for index in indices:
            size = len(encoded[index].ids) - encoded[index].num_prompt
            result[index], rest = rest[:size], rest[size:]
        assert not rest
    return result


def test_packed_and_unpacked_losses_are_the_same(alpaca, net):
    _, encoded, tokenizer = alpaca
    places = pack([len(example.ids) for example in encoded], SEQ_LEN + 1)
    assert len(places) < len(encoded)
    packed = losses_by_example(net, places, encoded, tokenizer, packed=True)
    apart = losses_by_example(net, [[i] for i in range(len(encoded))], encoded, tokenizer, packed=False)
    worst = max(np.abs(np.subtract(packed[i], apart[i])).max() for i in range(len(encoded)))
    print(f"largest difference of a token's loss: {worst:.2e} nats, {sum(map(len, apart.values()))} tokens")
    assert worst <= 1e-5


def test_without_starts_examples_would_leak(alpaca, net):
    _, encoded, tokenizer = alpaca
    from gpt2x.evaluate.scoring import Scorer

    places = pack([len(example.ids) for example in encoded], SEQ_LEN + 1)
    found = inputs_of(batch_of([[encoded[i] for i in row] for row in places], tokenizer), width=SEQ_LEN)
    scorer = Scorer(net, len(places))
    difference = np.abs(scorer.score(found.ids, found.starts) - scorer.score(found.ids))[found.counted > 0]
    assert difference.max() > 1e-2


def test_gradients_do_not_depend_on_packing(alpaca, net):
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.model.losses.language_modeling import WeightedLoss

    _, encoded, tokenizer = alpaca
    places = pack([len(example.ids) for example in encoded], SEQ_LEN + 1)
    total = sum(len(example.ids) - example.num_prompt for example in encoded)
    results, loss = [], WeightedLoss(net)
    for rows in (places, [[i] for i in range(len(encoded))]):
        found = inputs_of(batch_of([[encoded[i] for i in row] for row in rows], tokenizer), width=SEQ_LEN)
        starts = Tensor(found.starts) if rows is places else None
        weights = found.counted / np.float32(total)
        step = ms.value_and_grad(loss, None, net.trainable_params())
        results.append(step(Tensor(found.ids), Tensor(weights), None, starts))
    (packed_loss, packed), (apart_loss, apart) = results
    assert abs(float(packed_loss) - float(apart_loss)) <= 1e-5
    for parameter, a, b in zip(net.trainable_params(), packed, apart, strict=True):
        a, b = a.asnumpy(), b.asnumpy()
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-2), parameter.name


@pytest.mark.parity
def test_ids_and_losses_are_those_of_transformers(alpaca, net, shared_data):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    examples, encoded, tokenizer = alpaca
    theirs = transformers.GPT2TokenizerFast.from_pretrained(str(shared_data / "gpt2-tokenizer"))
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=SEQ_LEN, vocab_size=50257,
                                resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ).eval()  # fmt: skip
    values = {p.name: torch.tensor(p.asnumpy()) for p in net.get_parameters()}
    missing, unexpected = model.transformer.load_state_dict(values, strict=False)
    assert not unexpected
    assert not missing
    model.tie_weights()
    places = pack([len(example.ids) for example in encoded], SEQ_LEN + 1)
    packed = losses_by_example(net, places, encoded, tokenizer, packed=True)
    ours, wanted, worst, together = [], [], 0.0, 0
    for index, (example, tokens) in enumerate(zip(examples, encoded, strict=True)):
        prompt = theirs(example.prompt)["input_ids"]
        ids = [*prompt, *theirs(example.response)["input_ids"], theirs.eos_token_id]
        assert ids == tokens.ids
        together += ids == theirs(example.prompt + example.response + theirs.eos_token)["input_ids"]
        labels = torch.tensor([[IGNORED] * len(prompt) + ids[len(prompt) :]])
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), labels=labels)
        worst = max(worst, abs(float(found.loss) - np.mean(packed[index])))
        count = len(ids) - len(prompt)
        ours.append(np.sum(packed[index]))
        wanted.append(float(found.loss) * count)
    print(f"largest difference of an example's loss: {worst:.2e}; {together} of {len(encoded)} are as encoded together")
    assert worst <= 1e-5
    assert abs(sum(ours) - sum(wanted)) / sum(map(len, packed.values())) <= 1e-5


def test_the_whole_published_file_is_read(shared_data, tmp_path):
    path = shared_data / "alpaca" / "alpagasus_random_9k.json"
    config = DatasetConfig(name="alpaca", corpus="instructions", path=str(path), val_fraction=0.05, skip_empty=True)
    corpus = Instructions(config, tmp_path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    num_empty = sum(not row["output"].strip() for row in rows)
    assert len(corpus.examples("train")) + len(corpus.examples("val")) == len(rows) - num_empty
    assert f"{num_empty} rows of" in corpus.notes[0]
