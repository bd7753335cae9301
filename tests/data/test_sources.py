"""Sources: no two configurations with different rows share a cache directory; a new source is one file."""

import sys
from dataclasses import fields, replace
from typing import get_type_hints

import pytest

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data.cache import digest_of
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.rows.labelled import require_labelled
from gpt2x.data.rows.registry import ROW_FORMS
from gpt2x.data.sources import registry
from gpt2x.data.sources.base import LOCATIONS
from gpt2x.data.sources.registry import SOURCES, open_corpus, source_of
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.extensions import Extensions
from tests.data.sources import LINES, corpus

# A source as a user adds it: it reads keys that exist, and has one of its own.
READER = """
import hashlib
from dataclasses import dataclass

from gpt2x.data.reading.documents import document
from gpt2x.data.sources.base import Source


class Numbers(Source):
    @dataclass
    class Settings:
        word: str = "number"

    def has(self, split):
        return True

    def content_hash(self, split):
        return hashlib.sha256(b"nothing is read").hexdigest()

    def pieces(self, split):
        config = self.config
        size = round(200 * (config.val_fraction if split == "val" else 1 - config.val_fraction))
        for i in range(size):
            text = f"{self.settings.word} {i} {config.split_seed} {config.text_column} {config.columns} "
            yield from document(text + f"{config.label_names} {config.skip_empty} {config.name} ")


SOURCE = Numbers
"""
KEYS = [
    {"val_fraction": 0.5},
    {"split_seed": 3},
    {"text_column": "body"},
    {"columns": ["a"]},
    {"label_names": {"1": "x"}},
    {"skip_empty": True},
    {"name": "other"},
    {"settings": {"word": "item"}},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_bpe.train(iter(LINES), 280)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A package of sources with one more file in it than gpt2x has; its folder."""
    folder = tmp_path / "added_sources"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "numbers.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "SOURCES", Extensions("added_sources", "SOURCE", "dataset.corpus"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in [name for name in sys.modules if name.startswith("added_sources")]:
        del sys.modules[name]


def files(dataset, tokenizer, cache, form=None, splits=("train", "val")):
    data = prepare(
        dataset,
        TokenizerConfig(name="t"),
        form or Blocks(16),
        cache=cache,
        checkpoint_tokenizer=tokenizer,
        splits=splits,
    )
    return {name: split.files[0] for name, split in data.splits().items()}, data


def values_of(kind: object) -> list:
    """Two different values of a key's type."""
    return {
        str: ["x", "y"], str | None: ["x", "y"], int: [1, 2], float: [0.3, 0.4], bool: [True, False],
        list[str] | None: [["x"], ["y"]], dict[str, str] | None: [{"1": "x"}, {"1": "y"}],
    }.get(kind, [{"a": 1}, {"a": 2}])  # fmt: skip


def test_a_new_source_is_one_file_and_never_gets_rows_of_other_keys(added, tokenizer, tmp_path):
    base = DatasetConfig(name="numbers", corpus="numbers")
    first, data = files(base, tokenizer, tmp_path / "cache")
    assert files(base, tokenizer, tmp_path / "cache")[1].summary.tokens_per_s is None  # equal keys: from the cache
    assert (data.train.num_documents, data.val.num_documents) == (180, 20)
    for change in KEYS:
        other, changed = files(replace(base, **change), tokenizer, tmp_path / "cache")
        assert changed.summary.tokens_per_s is not None, change
        assert not set(other.values()) & set(first.values()), change
        assert changed.fingerprint != data.fingerprint, change
    with pytest.raises(UserError, match=r"dataset.settings.wrod does not exist; did you mean word\?"):
        files(replace(base, settings={"wrod": "x"}), tokenizer, tmp_path / "cache")


def test_a_source_that_is_edited_never_gets_rows_of_its_earlier_text(added, tokenizer, tmp_path):
    base = DatasetConfig(name="numbers", corpus="numbers")
    first, _ = files(base, tokenizer, tmp_path / "cache")
    (added / "numbers.py").write_text(READER.replace("{i} ", "number {i} "))
    del sys.modules["added_sources.numbers"]
    second, data = files(base, tokenizer, tmp_path / "cache")
    assert second["train"] != first["train"]
    assert data.summary.tokens_per_s is not None


def test_every_key_of_a_dataset_counts_but_locations(added, tmp_path):
    """Also a key that is added later: a source may read any."""
    base = DatasetConfig(name="numbers", corpus="numbers", settings={})
    source = open_corpus(base, tmp_path)
    types = get_type_hints(DatasetConfig)
    for field in fields(DatasetConfig):
        fingerprints = set()
        for value in values_of(types[field.name]):
            source.config = replace(base, **{field.name: value})
            fingerprints.add(source.fingerprint("train"))
        assert len(fingerprints) == (1 if field.name in LOCATIONS else 2), field.name


@pytest.mark.parametrize("name", SOURCES.names())
def test_configurations_of_a_shipped_source_share_no_rows_unless_these_are_equal(
    name, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("pydoc_data.topics.topics", dict(enumerate(LINES)))
    base, changes = corpus(name, tmp_path)
    form = ROW_FORMS.load(SOURCES.load(name).row_form)(700 if name == "instructions" else 150)
    seen: dict = {}
    for change in [{}, *changes, {}]:
        dataset = replace(base, **change)
        paths, data = files(dataset, tokenizer, tmp_path / "cache", form, splits=("train",))
        text = [piece for piece in open_corpus(dataset, tmp_path).pieces("train")]
        rows = (data.train.sha256, data.labels, digest_of(text))
        assert seen.setdefault(paths["train"], rows) == rows, change
    assert len(seen) == len(changes) + 1
    assert len(set(seen.values())) == len(changes) + 1, "a change in tests/data/sources.py changes no row"


def test_names_and_places_of_files_do_not_matter(tokenizer, tmp_path):
    first, _ = corpus("text", tmp_path / "a")
    second, _ = corpus("text", tmp_path / "b")
    assert first.path != second.path
    assert files(first, tokenizer, tmp_path)[0] == files(second, tokenizer, tmp_path)[0]


def test_a_task_takes_a_new_source_that_is_made_for_its_rows(added, tmp_path):
    (added / "pairs.py").write_text(
        "from gpt2x.data.sources.labelled import Labelled\nclass Pairs(Labelled): pass\nSOURCE = Pairs"
    )
    (added / "dialogs.py").write_text(
        "from gpt2x.data.sources.instructions import Instructions\nclass Dialogs(Instructions): pass\nSOURCE = Dialogs"
    )
    datasets = {name: DatasetConfig(name=name, corpus=name) for name in ("pairs", "dialogs", "numbers")}
    require_labelled(datasets["pairs"], "a test")
    for name in ("dialogs", "numbers"):
        with pytest.raises(UserError, match=f"dataset={name} has no labels, which a test needs"):
            require_labelled(datasets[name], "a test")
    assert source_of(datasets["dialogs"]).row_form == "instruction"


def test_a_source_that_is_made_for_other_rows_is_rejected(tokenizer, tmp_path):
    base, _ = corpus("text", tmp_path)
    for form, missing in (("labelled", "labels"), ("instruction", "responses")):
        with pytest.raises(UserError, match=f"dataset.corpus=text has no {missing}. Use dataset="):
            files(base, tokenizer, tmp_path / "cache", ROW_FORMS.load(form)(16))


def test_an_unknown_source_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"dataset.corpus=textt does not exist; did you mean text\?.*pydocs"):
        open_corpus(DatasetConfig(name="x", corpus="textt"), tmp_path)
