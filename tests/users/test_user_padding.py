"""Which token of a text a classifier reads: the last one that is not `pad_token_id`, as in transformers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gpt2x.convert import load_source
from gpt2x.convert.huggingface import export_huggingface
from gpt2x.convert.special_ids import PAD, special_ids_of_tokenizer
from gpt2x.model.gpt2 import initial_weights
from tests.support.models import CPU, tiny_model

VOCAB = 24
MODEL = tiny_model(vocab_size=VOCAB, num_layers=1, hidden_size=16, num_heads=2, labels=["a", "b", "c"])
CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "n_layer": 1, "n_embd": 16, "n_head": 2,
    "n_positions": 32, "vocab_size": VOCAB, "num_labels": 3, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
PADS = st.sampled_from([{}, {PAD: None}, {PAD: 0}, {PAD: 5}, {PAD: VOCAB - 1}, {PAD: -1}, {PAD: 999}])
TOKENS = st.sampled_from([0, 5, VOCAB - 1]) | st.integers(0, VOCAB - 1)  # a text may hold and end with any PAD
TEXTS = st.lists(st.lists(TOKENS, min_size=1, max_size=8), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier with random weights, in transformers' format."""
    folder = tmp_path_factory.mktemp("classifier")
    weights = {
        name if name.startswith("score") else f"transformer.{name}": values
        for name, values in initial_weights(MODEL, 1).items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def net(hardware):
    """The same classifier in gpt2x."""
    from gpt2x.model.classifier import Classifier
    from gpt2x.model.gpt2 import load_weights

    net = Classifier(MODEL, CPU)
    load_weights(net, initial_weights(MODEL, 1))
    return net


@pytest.fixture(scope="module")
def scorers(net):
    """A scorer of one text; its graph serves all ids of PAD."""
    from gpt2x.generate.class_scorer import ClassScorer

    return ClassScorer(net, 1, 32)


@pytest.mark.parity
@given(pad=PADS, texts=TEXTS)
def test_classes_are_those_of_transformers(folder, scorers, tmp_path_factory, pad, texts):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (folder / "config.json").write_text(json.dumps(CONFIG | pad))
    source = load_source(folder)
    exported = tmp_path_factory.mktemp("exported") / "x"
    export_huggingface(source, exported)
    scorers.pad_id = source.special_ids.pad
    ours = np.concatenate([scorers.score(np.array([text], np.int32), np.ones((1, len(text)))) for text in texts])
    for directory in (folder, exported):
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
        assert theirs.config.pad_token_id == source.special_ids.pad
        with torch.no_grad():
            logits = torch.cat([theirs(torch.tensor([text])).logits for text in texts])
            expected = torch.log_softmax(logits, -1).numpy()
            assert np.abs(ours - expected).max() < 1e-5
            if pad.get(PAD) in range(VOCAB):  # the same in a batch that is padded on the right
                width = max(map(len, texts))
                rows = torch.tensor([text + [pad[PAD]] * (width - len(text)) for text in texts])
                mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
                batch = torch.log_softmax(theirs(rows, attention_mask=mask).logits, -1).numpy()
                assert np.abs(ours - batch).max() < 1e-5


@pytest.mark.parametrize(("pad", "expected"), [(5, 5), (None, 0)])
def test_a_trained_classifier_is_padded_by_the_pad_of_its_tokenizer_else_by_eos(pad, expected):
    ids = special_ids_of_tokenizer(0, None, pad, is_classifier=True)
    assert ids.pad == ids.config[PAD] == expected
    assert special_ids_of_tokenizer(0, None, pad, is_classifier=False).config[PAD] == pad


def test_trailing_pads_are_not_part_of_a_text():
    from gpt2x.generate.class_scorer import without_trailing

    rows = np.array([[1, 9, 9, 0], [9, 9, 0, 0], [9, 1, 9, 2], [1, 2, 3, 9]], np.int32)
    assert without_trailing(rows, np.array([3, 2, 4, 3]), 9).tolist() == [1, 1, 4, 3]
    assert without_trailing(rows, np.array([3, 2, 4, 3]), 7).tolist() == [3, 2, 4, 3]
