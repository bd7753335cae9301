"""Generated requests of lm-evaluation-harness: gpt2x answers, or rejects, as lm_eval's own backend does."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError

pytestmark = [pytest.mark.parity, pytest.mark.launch]  # lm_eval looks for devices in a process of its own

WINDOW = 32
SPECIAL = ["<|BOS|>", "<|EOS|>", "<|PAD|>", "<|SEP|>"]  # ids 300 to 303
# name -> tokenizer_config.json, ids of config.json, generation_config.json
KINDS = {
    "three tokens and a list": (
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|BOS|>", "eos_token": "<|EOS|>", "pad_token": "<|PAD|>"},
        {"bos_token_id": 300, "eos_token_id": 301, "pad_token_id": 302},
        {"bos_token_id": 300, "eos_token_id": [301, 303], "repetition_penalty": 1.2},
    ),
    "no bos, and an eos that is no token": (
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|EOS|>"},
        {"bos_token_id": 300, "eos_token_id": 999},
        None,
    ),
}
BLANKS = ["", " ", "  ", "\n", "\t", " \n ", "\u00a0", "\u3000"]
WORDS = ["the", " cat", "The cat sat", " on a mat.", "é", "日本", "\U0001f600", "a" * 30, " and then some dogs ran" * 4]
PIECES = st.sampled_from([*BLANKS, *WORDS, *SPECIAL, "<|endoftext|>"])
TEXTS = st.lists(PIECES, max_size=5).map("".join) | st.text(max_size=6)
CONTEXTS = TEXTS | st.sampled_from(BLANKS)
STOPS = st.lists(st.sampled_from(["\n", " ", "e", "<|SEP|>", "<|EOS|>", "<|endoftext|>", "", "at"]), max_size=3)
GENERATION = st.fixed_dictionaries(
    {"until": STOPS, "max_gen_toks": st.integers(1, 8), "do_sample": st.just(False)},
    optional={"repetition_penalty": st.sampled_from([1.0, 1.5]), "min_new_tokens": st.integers(0, 3)},
).filter(lambda options: options.get("min_new_tokens", 0) <= options["max_gen_toks"])


@dataclass
class Pair:
    """The same weights behind both backends, one text at a time."""

    ours: object
    theirs: object

    def both(self, request_type, arguments):
        """What each answers to a request; None if it rejects it."""
        from lm_eval.api.instance import Instance

        def ask(model):
            return getattr(model, request_type)([Instance(request_type, {}, arguments, 0)], disable_tqdm=True)[0]

        try:
            expected = ask(self.theirs)
        except (AssertionError, IndexError):  # without a text
            expected = None
        if expected is not None:
            return ask(self.ours), expected
        with pytest.raises(UserError, match="the task has a con"):
            ask(self.ours)
        return None, None

    def likeliest(self, context):
        """The text of the token that the model would choose after a context."""
        import torch

        ids = (self.ours.tok_encode(context) or [self.ours.prefix_token_id])[-WINDOW:]
        return self.ours.tok_decode([int(self.theirs.model(torch.tensor([ids])).logits[0, -1].argmax())])


@pytest.fixture(scope="module", params=KINDS)
def backends(request, tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    from gpt2x.evaluate.harness.model import GPT2XLM

    transformers.utils.logging.set_verbosity_error()
    tokenizer_config, ids, generation = KINDS[request.param]
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, tokenizer_config)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=32, n_positions=WINDOW, vocab_size=304, initializer_range=0.3
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight[[0, 301, 303]] *= 1.5  # so that texts often come to one that ends them
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ids))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)
    return Pair(GPT2XLM(str(folder), batch_size=1), theirs)


def write_tokenizer(folder: Path, tokenizer_config) -> None:
    trained = byte_level_bpe.train(["The cat sat on a mat and then some dogs ran over this green hill. "], 300)
    backend = tokenizers.Tokenizer.from_str(trained._backend.to_str())
    backend.add_tokens([f"unused{number}" for number in range(300 - backend.get_vocab_size())])
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    Tokenizer(backend, "<|endoftext|>").save(folder)
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


@given(CONTEXTS, TEXTS, st.booleans())
def test_log_likelihoods(backends, context, continuation, is_likeliest):
    if is_likeliest:
        continuation = backends.likeliest(context) or continuation
    ours, theirs = backends.both("loglikelihood", (context, continuation))
    if theirs is None:
        assert ours is None
        return
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4, rel=1e-6)
    assert ours[1] == theirs[1]


@given(TEXTS)
def test_rolling_log_likelihoods(backends, text):
    ours, theirs = backends.both("loglikelihood_rolling", (text,))
    assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-6)


@given(TEXTS.filter(bool), GENERATION)
def test_completions(backends, context, generation):
    ours, theirs = backends.both("generate_until", (context, generation))
    assert ours == theirs


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        ("  ", "a", r"the task has a context of blanks only \('  '\): lm_eval moves blanks to the continuation"),
        ("\u3000\n", "a", "the task has a context of blanks only"),
        ("", "", r"the task has a continuation \(''\) of 0 tokens and no context"),
        ("a", "", r"the task has a continuation \(''\) of 0 tokens; 1 to model.max_seq_len=32 can be scored"),
        ("a", " the" * 40, "tokens; 1 to model.max_seq_len=32 can be scored"),
    ],
)
def test_requests_that_cannot_be_scored(backends, context, continuation, message):
    from lm_eval.api.instance import Instance

    request = Instance("loglikelihood", {}, (context, continuation), 0)
    with pytest.raises(UserError, match=message):
        backends.ours.loglikelihood([request], disable_tqdm=True)
    with pytest.raises((AssertionError, IndexError)):
        backends.theirs.loglikelihood([request], disable_tqdm=True)


def test_a_text_without_context_follows_bos(backends):
    assert backends.ours.prefix_token_id == backends.theirs.prefix_token_id
    assert backends.ours.eot_token_id == backends.theirs.eot_token_id
