"""The numbers of lm-evaluation-harness from gpt2x are those from its own Hugging Face backend on the same weights."""

import json
import pydoc_data.topics
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import yaml

from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from tests.commands import convert
from tests.commands import harness as main

pytestmark = [pytest.mark.parity, pytest.mark.launch]  # lm_eval looks for devices in a process of its own

TEXTS = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 1500]
WINDOW = 64
MOST_NEW = 12


@pytest.fixture(scope="module")
def lm_eval():
    """lm_eval, torch and transformers, or a skip by name."""
    for name in ("torch", "transformers", "accelerate"):
        pytest.importorskip(name)
    return pytest.importorskip("lm_eval")


@dataclass
class Pair:
    """The same weights behind both backends."""

    load: Path
    ours: object
    theirs: object

    def both(self, request_type, *arguments):
        """What each answers to the same requests."""
        from lm_eval.api.instance import Instance

        def ask(model):
            requests = [Instance(request_type, {}, one, place) for place, one in enumerate(arguments)]
            return getattr(model, request_type)(requests, disable_tqdm=True)

        return ask(self.ours), ask(self.theirs)


def pair(load: Path, batch_size: int = 8) -> Pair:
    from lm_eval.models.huggingface import HFLM

    from gpt2x.evaluate.harness.model import GPT2XLM

    theirs = HFLM(str(load), device="cpu", dtype="float32", batch_size=batch_size)
    return Pair(load, GPT2XLM(str(load), batch_size=batch_size), theirs)


@pytest.fixture(scope="module")
def random_dir(lm_eval, tmp_path_factory):
    """A tiny model of transformers with random weights, which often comes to EOS and to another special token.

    No stop string of the tests is within that token: whether lm_eval ends a row there depends on the other rows of its
    batch.
    """
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("random")
    trained = tokenizers.Tokenizer.from_str(byte_level_bpe.train(TEXTS[:20], 400)._backend.to_str())
    trained.add_special_tokens(["<|x|>"])
    tokenizer = Tokenizer(trained, "<|endoftext|>")
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=64, n_positions=WINDOW, vocab_size=tokenizer.vocab_size, initializer_range=0.2,
        bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight[[tokenizer.eos_id, trained.token_to_id("<|x|>")]] *= torch.tensor([[2.0], [1.5]])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["random", "trained"])
def backends(request, lm_eval):
    return pair(request.getfixturevalue("random_dir" if request.param == "random" else "shakespeare_dir"))


def write_task(folder: Path, name: str, rows: list[dict], **keys) -> None:
    """A task on a jsonl file of its own."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    task |= {"test_split": "test", "target_delimiter": ""} | keys
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def metric(name: str, aggregation: str, higher_is_better: bool) -> dict[str, object]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def prompts(number: int, length: int) -> list[str]:
    return [text[100 : 100 + length] for text in TEXTS[:number]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, backends):
    """A folder of one task of each kind; the model's own words are the right ones in half of the rows to generate."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"context": text[: 20 + 12 * place], "choices": [text[s : s + 9 + place] for s in (300, 20 + 12 * place, 400)]}
        for place, text in enumerate(TEXTS[:24])
    ]
    write_task(
        folder, "choice", [row | {"answer": place % 3} for place, row in enumerate(rows)],
        output_type="multiple_choice", doc_to_text="{{context}}", doc_to_choice="{{choices}}", doc_to_target="answer",
        metric_list=[metric("acc", "mean", True), metric("acc_norm", "mean", True)],
    )  # fmt: skip
    write_task(
        folder, "rolling", [{"text": text[:length]} for text, length in zip(TEXTS, (3, 90, 400, 1500), strict=False)],
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[
            metric("word_perplexity", "weighted_perplexity", False),
            metric("byte_perplexity", "weighted_perplexity", False),
            metric("bits_per_byte", "bits_per_byte", False),
        ],
    )  # fmt: skip
    generation = {"until": ["\n\n", "."], "max_gen_toks": MOST_NEW, "do_sample": False}
    contexts = prompts(16, 120)
    _, texts = backends.both("generate_until", *((context, generation) for context in contexts))
    write_task(
        folder, "generate",
        [{"context": context, "target": text if place % 2 else f"{text}?"}
         for place, (context, text) in enumerate(zip(contexts, texts, strict=True))],
        output_type="generate_until", doc_to_text="{{context}}", doc_to_target="{{target}}",
        generation_kwargs=generation, metric_list=[metric("exact_match", "mean", True)],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def results(lm_eval, backends, tasks):
    """What lm_eval makes of all tasks, with each backend."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return [
        lm_eval.simple_evaluate(model, tasks=["choice", "rolling", "generate"], task_manager=manager, bootstrap_iters=0)
        for model in (backends.ours, backends.theirs)
    ]


def test_metrics(results):
    ours, theirs = ({task: values for task, values in one["results"].items()} for one in results)
    for name in ("acc,none", "acc_norm,none"):
        assert ours["choice"][name] == theirs["choice"][name]
        assert 0 < ours["choice"][name] < 1
    for name in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
        assert ours["rolling"][name] == pytest.approx(theirs["rolling"][name], rel=1e-4)
    assert ours["generate"]["exact_match,none"] == theirs["generate"]["exact_match,none"] == 0.5


def test_answer_to_each_request(results):
    ours, theirs = ({task: [s["resps"] for s in rows] for task, rows in one["samples"].items()} for one in results)
    assert ours["generate"] == theirs["generate"]
    assert len({str(texts) for texts in ours["generate"]}) > 5
    for task, tolerance in {"choice": {"atol": 1e-4}, "rolling": {"rtol": 1e-6}}.items():
        assert np.shape(ours[task]) == np.shape(theirs[task])
        np.testing.assert_allclose(
            np.float64(ours[task]), np.float64(theirs[task]), **{"rtol": 0.0, "atol": 0.0} | tolerance
        )


def test_division_into_context_and_continuation(backends):
    """No context, blanks at its end, EOS in it, a pair cut within a word, more tokens than positions, greedy ones."""
    contexts = prompts(8, 60)
    _, words = backends.both("generate_until", *((context, {"until": [], "max_gen_toks": 1}) for context in contexts))
    pairs = [
        ("", "The"), ("", "The statement and the rest"), ("", "<|endoftext|>The"), ("a statement   ", "of"),
        ("a\n\n", "b\n"), ("<|endoftext|>An", " expression"), ("state", "ment"), ("naïve ", "日本語"),
        (TEXTS[0][:900], " and so on"), (TEXTS[0][:900], TEXTS[1][:60]),
        *((context, word) for context, word in zip(contexts, words, strict=True) if word),
    ]  # fmt: skip
    ours, theirs = backends.both("loglikelihood", *pairs)
    assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]
    assert len({is_greedy for _, is_greedy in ours}) == 2
    np.testing.assert_allclose([nll for nll, _ in ours], [nll for nll, _ in theirs], rtol=0, atol=1e-4)


def test_rolling_windows(backends):
    """Texts about as long as the window, where its ends are."""
    ids = backends.ours.tok_encode(TEXTS[9])
    decode = backends.ours.tok_decode
    texts = [
        ("",),
        *((decode(ids[:length]),) for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW)),
    ]
    ours, theirs = backends.both("loglikelihood_rolling", *texts)
    assert ours[0] == theirs[0] == 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"until": "e", "max_gen_toks": 20},
        {"until": ["zzz"], "max_gen_toks": 40},
        {"max_new_tokens": 5, "temperature": 0.0},
        {"max_gen_toks": 10, "do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"max_gen_toks": 10, "do_sample": True, "temperature": 0.7, "top_k": 1},
        {"max_gen_toks": 10, "repetition_penalty": 1.5, "num_beams": 1},
    ],
    ids=str,
)
def test_generation_kwargs(backends, options):
    """Contexts of all lengths, with and without those that lose their beginning."""
    contexts = [text[:length] for text, length in zip(TEXTS, (5, 400, 60, 33, 150, 90, 12, 200, 3), strict=False)]
    ours, theirs = backends.both("generate_until", *((context, dict(options)) for context in contexts))
    assert ours == theirs
    assert len(set(ours)) > 1


def test_kinds_of_generation_in_one_call(backends):
    kinds = [{"until": [","], "max_gen_toks": 9}, {"until": [" "], "max_gen_toks": 6}]
    asked = [(context, kinds[place % 2]) for place, context in enumerate(prompts(16, 50))]
    ours, theirs = backends.both("generate_until", *asked)
    assert ours == theirs


def test_order_and_batches_change_nothing(backends):
    asked = [(text[:length], text[400:420]) for text, length in zip(TEXTS, range(10, 300, 13), strict=False)]
    shuffled = random.Random(0).sample(range(len(asked)), len(asked))
    together, _ = backends.both("loglikelihood", *asked)
    mixed, _ = backends.both("loglikelihood", *(asked[place] for place in shuffled))
    alone = [backends.both("loglikelihood", one)[0][0] for one in asked[:3]]
    np.testing.assert_allclose(mixed, [together[place] for place in shuffled], rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, together[:3], rtol=0, atol=1e-5)


def test_sampling(backends):
    """Samples are a function of the seed, drawn as transformers' defaults say; repeated requests differ."""
    import transformers

    from gpt2x.evaluate.harness import model as harness

    asked = [(TEXTS[0][:40], {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 1.0})] * 8
    first, _ = backends.both("generate_until", *asked)
    assert first == backends.both("generate_until", *asked)[0]
    assert len(set(first)) > 4
    default = transformers.GenerationConfig()._get_default_generation_params()["top_k"]
    assert backends.ours.decoding(asked[0][1])[0].top_k == default == harness.TRANSFORMERS_TOP_K


# ---- the command


@pytest.fixture
def no_defaults(lm_eval, monkeypatch):
    """The fifteen thousand tasks of lm_eval are not read, which takes ten seconds."""
    from lm_eval import tasks

    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))


@pytest.fixture
def own_tasks(no_defaults, tmp_path):
    """A folder of one small task."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_generation(folder, max_gen_toks=4)
    return folder


def write_generation(folder: Path, **generation) -> None:
    write_task(
        folder, "small", [{"text": text} for text in prompts(3, 30)],
        output_type="generate_until", doc_to_text="{{text}}", doc_to_target="x",
        generation_kwargs={"until": ["."]} | generation, metric_list=[metric("exact_match", "mean", True)],
    )  # fmt: skip


def test_command(no_defaults, tmp_path, tasks, results, backends, capsys):
    """From a gpt2x checkpoint, in batches of another size: the table, and the numbers of the fixture in a file."""
    load = tmp_path / "checkpoint"
    assert convert(["--to", "gpt2x", "--output", str(load), str(backends.load)]) == 0
    output = tmp_path / "new" / "results.json"
    arguments = ["--load", str(load), "--include-path", str(tasks), "--output", str(output), "--batch-size", "4"]
    assert main([*arguments, "--tasks", "choice,rolling", "generate"]) == 0
    written = json.loads(output.read_text(encoding="utf-8"))
    expected = results[0]["results"]
    for task, values in expected.items():
        for name, value in values.items():
            if isinstance(value, float):
                assert written["results"][task][name] == pytest.approx(value, rel=1e-6), (task, name)
    assert written["config"]["model_args"]["load"] == str(load)
    assert written["config"]["model_source"]["kind"] == "gpt2x"
    printed = capsys.readouterr().out
    for text in (
        "|choice ",
        "word_perplexity",
        "|exact_match",
        f"{expected['choice']['acc,none']:.4f}",
        f"results: {output}",
    ):
        assert text in printed


MISTAKES = {
    "load": (
        {"--load": "nowhere"},
        "load=nowhere is no local directory, and as the name of a repository of the",
    ),
    "task": ({"--tasks": "smal"}, "--tasks=smal: lm_eval has no such task; did you mean small?"),
    "include-path": ({"--include-path": "nowhere"}, "--include-path=nowhere is not a directory; give one with tasks"),
    "limit": ({"--limit": "0"}, "--limit=0: give the number of documents"),
    "batch-size": ({"--batch-size": "0"}, "--batch-size=0: give at least 1"),
    "hardware": ({"--hardware": "gpu"}, "hardware=gpu is not an option; options: atlas_800t_a2"),
    "output": ({"--output": "."}, "output=. is a directory; give a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line(mistake, random_dir, own_tasks, capsys):
    changes, message = MISTAKES[mistake]
    chosen = {"--load": str(random_dir), "--tasks": "small", "--include-path": str(own_tasks)} | changes
    check_refused([part for option in chosen.items() for part in option], message, capsys)


def check_refused(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {message}")


IMPOSSIBLE = {
    "max_gen_toks": ({"max_gen_toks": WINDOW}, f"max_gen_toks={WINDOW} leaves no room for a context within model."),
    "num_beams": ({"num_beams": 4}, "generation_kwargs.num_beams=4: gpt2x has no such option; it has until"),
    "do_sample": ({"do_sample": True}, "generation.temperature=0 is greedy decoding; drop generation.do_sample"),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_options_of_a_task_that_cannot_be_had(option, random_dir, own_tasks, capsys):
    generation, message = IMPOSSIBLE[option]
    write_generation(own_tasks, **{"max_gen_toks": 4} | generation)
    check_refused(["--load", str(random_dir), "--tasks", "small", "--include-path", str(own_tasks)], message, capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "--tasks=small: its documents are not cached and cannot"),
        (ValueError("bad\nmore"), "--tasks=small cannot be loaded: ValueError: bad"),
    ],
    ids=["no network", "wrong"],
)
def test_documents_that_cannot_be_had(error, message, random_dir, own_tasks, monkeypatch, capsys):
    import datasets

    def load_dataset(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check_refused(["--load", str(random_dir), "--tasks", "small", "--include-path", str(own_tasks)], message, capsys)


def test_a_continuation_that_cannot_be_scored(lm_eval, random_dir):
    from lm_eval.api.instance import Instance

    from gpt2x.evaluate.harness.model import GPT2XLM

    lm = GPT2XLM(str(random_dir))
    for continuation, tokens in ((TEXTS[1][:900], r"\d+"), ("", "0")):
        asked = [Instance("loglikelihood", {}, ("context", continuation), 0)]
        with pytest.raises(UserError, match=rf"of {tokens} tokens; 1 to model\.max_seq_len={WINDOW} can be scored"):
            lm.loglikelihood(asked, disable_tqdm=True)


@pytest.mark.parametrize("options", [{"batch_size": "auto"}, {"batch_size": 0}], ids=str)
def test_batch_sizes_that_are_refused(lm_eval, random_dir, options):
    from gpt2x.evaluate.harness.model import GPT2XLM

    with pytest.raises(UserError, match="=".join(map(str, *options.items()))):
        GPT2XLM(str(random_dir), **options)


def test_lm_eval_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    check_refused(["--load", "x", "--tasks", "y"], "lm_eval is not installed: pip install 'gpt2x[lm-eval]'", capsys)
