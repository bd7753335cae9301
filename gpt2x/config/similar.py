"""The key that a name means which is not one: another program's word, the last part of a key, or a spelling."""

from __future__ import annotations

import difflib

from gpt2x.config.keys import all_keys
from gpt2x.config.options import SCHEMAS, chosen_options

# Words of GPT-2's configuration, Hugging Face's Trainer, nanoGPT and common scripts
SYNONYMS = {
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.eps",
    "bs": "trainer.global_batch_size",
    "batch_size": "trainer.global_batch_size",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "max_iters": "trainer.max_steps",
    "block_size": "trainer.seq_len",
    "context_length": "trainer.seq_len",
    "max_grad_norm": "trainer.grad_clip",
    "eval_interval": "trainer.eval_every_steps",
    "eval_steps": "trainer.eval_every_steps",
    "save_steps": "trainer.checkpoint_every_steps",
    "warmup": "schedule.warmup_steps",
    "warmup_iters": "schedule.warmup_steps",
    "scheduler": "schedule",
    "n_layer": "model.num_layers",
    "layers": "model.num_layers",
    "n_head": "model.num_heads",
    "heads": "model.num_heads",
    "n_embd": "model.hidden_size",
    "d_model": "model.hidden_size",
    "n_positions": "model.max_seq_len",
    "device": "hardware.device_target",
    "dtype": "hardware.precision",
    "output_dir": "paths.outputs",
    "out_dir": "paths.outputs",
    "checkpoint": "load",
    "data": "dataset",
    "prompt": "prompts",
}


def names(root: type) -> list[str]:
    """Return the keys and groups of an entry point's configuration, groups without keys such as experiment included."""
    entry = next((name for name, schema in SCHEMAS.items() if schema is root), None)
    return [*dict.fromkeys([*all_keys(root), *(chosen_options(entry) if entry else [])])]


def meant_keys(name: str, root: type) -> list[str]:
    """Return the keys and groups that `name` may mean, the likeliest only; empty if nothing is similar."""
    spelled, choices = name.replace("-", "_").strip("."), names(root)
    parent, _, last = spelled.rpartition(".")
    synonym = SYNONYMS.get(last.lower())
    if spelled in choices:
        return [spelled]
    if synonym in choices:
        return [synonym]
    same = [key for key in choices if key.rpartition(".")[2] == last.lower()]
    siblings = [key for key in choices if key.rpartition(".")[0] == parent]
    ends: dict[str, list[str]] = {}
    for key in choices:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    return (
        same
        or difflib.get_close_matches(spelled, siblings, n=1, cutoff=0.75)
        or difflib.get_close_matches(spelled, choices, n=1, cutoff=0.8)
        or [key for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.9) for key in ends[end]]
    )


def either(words: list[str]) -> str:
    """Return 'a', 'a or b', 'a, b or c'."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def similar_keys(key: str, root: type) -> str:
    """Return a did-you-mean, or the keys beside which `key` was looked for."""
    meant = [other for other in meant_keys(key, root) if other != key]
    if meant:
        return f"did you mean {either(meant[:4])}?"
    parent, choices = key.rpartition(".")[0], names(root)
    siblings = [other for other in choices if other.rpartition(".")[0] == parent and other != key]
    return f"keys there: {', '.join(sorted(siblings))}." if siblings else "--help lists the keys."
