"""Warnings of modules that speak through `logging` reach the user, although Hydra silences the root logger."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2x.runtime.log_records import LOGGER, handle_log_records
from tests.support.bare_weights import bare_model, write_huggingface

ROOT = Path(__file__).resolve().parents[2]


def test_a_warning_is_shown_once_whatever_the_root_logger_lets_through(capsys):
    logger, root = logging.getLogger(LOGGER), logging.getLogger()
    before = logger.level, list(logger.handlers), root.level
    root.setLevel(logging.CRITICAL)
    try:
        handle_log_records(are_shown=True)
        for text in ("one", "two", "one"):
            logging.getLogger(f"{LOGGER}.convert").warning("%s", text)
        logging.getLogger(f"{LOGGER}.convert").info("detail")
        handle_log_records(are_shown=False)
        logging.getLogger(f"{LOGGER}.convert").warning("three")
    finally:
        logger.handlers[:] = before[1]
        logger.setLevel(before[0])
        root.setLevel(before[2])
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"


@pytest.mark.launch
def test_what_loading_notices_reaches_the_user_of_a_script(tmp_path):
    model = write_huggingface(tmp_path / "model", bare_model())
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    command = [sys.executable, str(ROOT / "train.py"), f"load={model}", "plan=true", "tracker=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr.count("has an adapter beside the model, which transformers adds") == 1
