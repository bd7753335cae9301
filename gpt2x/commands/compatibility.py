"""docs/compatibility.md: what is read, rejected and ignored, by format and key, from the code's own lists.

`python -m gpt2x.commands.compatibility docs/compatibility.md` writes the tables of the file again.
"""

from __future__ import annotations

from gpt2x.compatibility import Format
from gpt2x.config.reference import rewrite, with_content
from gpt2x.convert.huggingface_files import WEIGHTS_FORMAT
from gpt2x.convert.huggingface_keys import CONFIG_KEYS
from gpt2x.convert.huggingface_names import NAMES_FORMAT
from gpt2x.convert.mindformers_config import MODEL_CONFIG
from gpt2x.convert.mindformers_files import MINDFORMERS_FILES
from gpt2x.convert.mindformers_names import MINDFORMERS_NAMES
from gpt2x.convert.special_ids import GENERATION
from gpt2x.data.mindrecord import RECORDS
from gpt2x.data.reading.encodings import ENCODINGS
from gpt2x.data.reading.folders import DATA_FILES
from gpt2x.data.reading.values import VALUES
from gpt2x.data.tokenizer_formats import CONFIG as TOKENIZER_CONFIG
from gpt2x.data.tokenizer_formats import FILES as TOKENIZER_FILES
from gpt2x.lora import peft_config, peft_tensors

BEGIN = "<!-- formats: begin (python -m gpt2x.commands.compatibility docs/compatibility.md) -->"
END = "<!-- formats: end -->"
FORMATS: tuple[Format, ...] = (
    WEIGHTS_FORMAT,
    NAMES_FORMAT,
    CONFIG_KEYS,
    GENERATION,
    MINDFORMERS_FILES,
    MINDFORMERS_NAMES,
    MODEL_CONFIG,
    DATA_FILES,
    VALUES,
    ENCODINGS,
    RECORDS,
    TOKENIZER_FILES,
    TOKENIZER_CONFIG,
    peft_config.FORMAT,
    peft_tensors.FORMAT,
    peft_tensors.FILES,
)


def with_tables(text: str) -> str:
    """Return `text` with the tables between its two markers written again."""
    return with_content(text, BEGIN, "\n\n".join(map(table, FORMATS)), END)


def table(format: Format) -> str:
    """Return the section of one format."""
    rows = [f"| {cell(f'`{entry.name}`')} | {entry.use} | {cell(entry.note)} |" for entry in format.entries]
    head = [f"## {format.title}", "", format.what, "", "| name | use | note |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f"Anything else: {format.others}"])


def cell(text: str) -> str:
    """Return a text as the cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    rewrite(with_tables)
