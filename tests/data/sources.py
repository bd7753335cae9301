"""One small corpus for every shipped source, and changes of its configuration that change the text of a split."""

import json
from pathlib import Path

from gpt2x.config import DatasetConfig

LINES = [f"document {i} " + "word " * (i % 7 + 3) for i in range(40)]
ARTICLE = " \n = Title {0} = \n \n line one of {0} . \n = = Part = = \n line two of {0} . \n"
ROWS = [{"instruction": f"Count to {i}.", "input": "", "output": f"one {i} " * 3} for i in range(20)]
TEMPLATE = "with_input: '{instruction} {input}'\nwithout_input: 'Q: {instruction}'\n"


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def jsonl(rows) -> str:
    return "\n".join(map(json.dumps, rows))


def corpus(name: str, folder: Path) -> tuple[DatasetConfig, list[dict]]:
    """A configuration of the source `name`, and changes of keys that must give other rows in the training part."""
    path: str | None = None
    changes: list[dict] = [{"val_fraction": 0.5}, {"split_seed": 7}]
    if name == "pydocs":
        pass
    elif name == "text":
        rows = [{"text": line, "body": line.upper()} for line in LINES]
        path = write(folder / "text.jsonl", jsonl(rows))
        val = write(folder / "val.txt", "some text for validation " * 9)
        changes += [{"text_column": "body"}, {"val_path": val}]
    elif name == "wikitext2":
        path = str(folder / "wikitext2")
        for split in ("train", "valid"):
            write(folder / f"wikitext2/wiki.{split}.tokens", "".join(map(ARTICLE.format, range(9))))
        changes = [{"protocol": "reference"}, {"protocol": "reference", "keep_last_passage": True}]
    elif name == "labelled":
        rows = [
            {"text": f"a <br>{line}", "title": line.upper(), "label": i % 2, "kind": i % 3}
            for i, line in enumerate(LINES)
        ]
        path = write(folder / "labelled.jsonl", jsonl(rows))
        changes += [
            {"text_column": "title"},
            {"text_columns": ["title", "text"]},
            {"label_column": "kind"},
            {"line_break": "<br>"},
        ]
    elif name == "instructions":
        path = write(folder / "instructions.json", json.dumps(ROWS))
        changes += [{"template": write(folder / "template.yaml", TEMPLATE)}, {"packing": False}]
    else:
        raise AssertionError(f"the source {name} is new: give it a corpus here, and the keys that it reads")
    return DatasetConfig(name=name, corpus=name, path=path), changes
