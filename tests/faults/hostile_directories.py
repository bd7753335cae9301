"""Hostile directories: manifests that are sealed and impossible, configurations out of range, links that lead out."""

# ruff: noqa: E501 - a row of a table is one line
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import seeds
from tests.faults.hostile_weights import Case
from tests.faults.seeds import edited, resealed

DEEP = 10_000


def _nested(depth: int = 200) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _manifest(
    name: str, change: Callable[[Any], Any], entries: tuple[str, ...] = ("load=",), **options: Any
) -> list[Case]:
    return [
        Case(
            entry,
            f"manifest: {name}",
            lambda folder: resealed(seeds.copy("checkpoint", folder / "step_1"), change),
            **options,
        )
        for entry in entries
    ]


def _tensor(**changes: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["groups"]["weights"]["wte.weight"].update(changes)


def _slice(**changes: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["groups"]["weights"]["wte.weight"]["slices"][0].update(changes)


def _file(name: str, **entry: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0" * 64} | entry})


def _many_slices(manifest: Any) -> None:
    piece = manifest["groups"]["weights"]["wte.weight"]["slices"][0]
    manifest["groups"]["weights"]["wte.weight"]["slices"] = [
        piece | {"start": [i % 280, 0], "shape": [1, 8]} for i in range(50_000)
    ]


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        *parents, last = path.split("/")
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value

    return change


def _drop(path: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        *parents, last = path.split("/")
        for key in parents:
            manifest = manifest[key]
        del manifest[last]

    return change


ALL = ("load=", "checkpoint")
MANIFESTS = [case for cases in (
    *(_manifest(f"no {key}", _drop(key), ALL) for key in ("model", "groups", "files", "run_config", "loop_state")),
    *(_manifest(f"{key} is {value!r}", _set(key, value), ALL)
      for key in ("model", "groups", "files") for value in (None, [], "x", 7)),
    *(_manifest(f"model.num_layers is {value!r}", _set("model/num_layers", value), ("load=", "checkpoint", "resume="))
      for value in (10**9, -1, 0, "2", 2.5, None, True, [2], float("nan"), 10**40)),
    *(_manifest(f"model.{key} is {value!r}", _set(f"model/{key}", value)) for key, value in (
        ("vocab_size", 10**12), ("max_seq_len", 10**12), ("hidden_size", 10**12), ("layer_norm_eps", float("nan")),
        ("dropout", 2), ("activation", "exec"), ("labels", "abc"), ("labels", [1, None]), ("tie_embeddings", "no"),
        ("num_heads", 0), ("num_heads", 3))),
    _manifest("no model.hidden_size", _drop("model/hidden_size"), ALL),
    *(_manifest(f"a tensor of the shape {str(value)[:40]}", _tensor(shape=value), ALL)
      for value in ([-1, 8], [10**12, 10**12], [280], "x", [280, "8"], [280, None], [1.5, 8], [True, 8], [1] * 1000)),
    *(_manifest(f"a tensor of the dtype {value!r}", _tensor(dtype=value), ALL)
      for value in ("float128", "object", "O", "float64", None, ["f4"], "S1000000000", "<M8[s]")),
    *(_manifest(f"slices {str(value)[:40]}", _tensor(slices=value), ALL) for value in (None, [], {}, [None], [[]], "x")),
    _manifest("50,000 slices", _many_slices, ALL),
    *(_manifest(f"a slice in {value!r}", _slice(file=value), ALL)
      for value in ("../out.safetensors", "/etc/passwd", "absent", "config.yaml", "tokenizer", None, 7, "a\0b", "")),
    *(_manifest(f"a slice at {value!r}", _slice(start=value), ALL)
      for value in ([-1, 0], [10**18, 0], [0], [0, 0, 0], None, ["0", 0], [0.0, 0], [1, 0])),
    _manifest("a slice of another tensor", _slice(key="h.0.ln_1.weight"), ALL),
    _manifest("a slice of no tensor", _slice(key=7), ALL),
    *(_manifest(f"a file {name!r}", _file(name), ALL) for name in ("../up", "/etc/passwd", "", "a\0b", "x/../../y", "c" * 5000)),
    *(_manifest(f"a file of the size {size!r}", _file("config.yaml", size=size), ALL) for size in (-1, None, "1", 10**30)),
    *(_manifest(f"a file of the sha256 {str(value)[:20]!r}", _file("config.yaml", sha256=value), ALL) for value in (None, 7, "z" * 64)),
    *(_manifest(f"special_ids {value!r}", _set("special_ids", value)) for value in (7, [], {}, {"config": 1, "generation": {}},
        {"config": {"eos_token_id": "a"}, "generation": {}})),
    *(_manifest(f"loop_state is {value!r}", _set("loop_state", value), ("resume=",)) for value in ({}, {"step": "x"}, {"loss_scale": 3})),
    *(_manifest(f"loop_state.{key} is {value!r}", _set(f"loop_state/{key}", value), ("resume=",)) for key, value in (
        ("step", -1), ("step", "1"), ("step", None), ("step", 10**30), ("batch", "x"), ("loss_scale", {"x": 1}),
        ("loss_scale", {"value": "NaN", "factor": 0, "window": -1}), ("bests", 7), ("epoch", 1.5), ("units_seen", []),
        ("open_hook", "Nothing"), ("open_hook", ["Evaluate"]), ("open_metrics", {}), ("open_metrics", {"train/loss": [1]}),
        ("recent", [["NaN", 1.0]]), ("exploded_in_a_row", -1), ("num_updates", 2), ("best_value", "Infinity"),
        ("best_step", 7), ("records", {"metrics.jsonl": {"bytes": "x", "sha256": ""}}))),
    *(_manifest(f"run_config is {value!r}", _set("run_config", value), ("resume=",)) for value in ({}, {"trainer": 7}, {"model": []})),
    _manifest("run_config nested 200 deep", _set("run_config/seed", _nested()), ALL),
    _manifest("a key with the signs of a terminal", lambda m: m["loop_state"].update({"\x1b[2J[/red]": "[bold]\x1b]0;x\x07"}), ("checkpoint",), is_accepted=True),
    _manifest("an adapter without its configuration", lambda m: m.update(
        groups={"adapter": m["groups"]["weights"]}, run_config={}), ("adapters=",)),
    _manifest("an adapter of the rank 10 ** 9", lambda m: (m.update(groups={"adapter": m["groups"]["weights"]}),
        m["run_config"]["lora"].update(rank=10**9, alpha=1.0)), ("adapters=",)),
    _manifest("an adapter of a rank that is a text", lambda m: (m.update(groups={"adapter": m["groups"]["weights"]}),
        m["run_config"].update(lora={"rank": "x"})), ("adapters=",)),
) for case in cases]  # fmt: skip


def _linked(file: str, target: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = seeds.copy("checkpoint", folder / "step_1")
        (folder / "outside").mkdir()
        os.rename(path / file, folder / "outside" / "it")
        (path / file).symlink_to(target if target else folder / "outside" / "it")
        return path

    return write


def _pipe(folder: Path) -> Path:
    path = seeds.copy("checkpoint", folder / "step_1")
    (path / "config.yaml").unlink()
    os.mkfifo(path / "config.yaml")
    return resealed(path, _file("config.yaml", size=0))


def _added(folder: Path) -> Path:
    path = seeds.copy("checkpoint", folder / "step_1")
    (path / "tokenizer" / "added_tokens.json").write_text('{"the": 1}')
    return path


def _raw_manifest(text: Callable[[], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = seeds.copy("checkpoint", folder / "step_1")
        (path / "manifest.json").write_text(text())
        return path

    return write


LINKS = [
    Case(entry, f"checkpoint: {name}", write)
    for entry in ("load=", "checkpoint", "resume=")
    for name, write in (
        ("weights that are a link out of it", _linked("weights.safetensors", "")),
        ("weights that are a link to a device", _linked("weights.safetensors", "/dev/zero")),
        ("a tokenizer that is a link out of it", _linked("tokenizer", "")),
        ("a link to itself", _linked("weights.safetensors", "weights.safetensors")),
        ("a pipe", _pipe),
        ("a file of the tokenizer without a hash", _added),
        ("a manifest of 65 MB", _raw_manifest(lambda: '{"a": "' + "x" * (65 << 20) + '"}')),
        ("a manifest of 20 MB of objects", _raw_manifest(lambda: '{"a": [' + '{"a":0},' * (2 << 20) + "0]}")),
        ("a manifest nested 10 ** 5 deep", _raw_manifest(lambda: "[" * 100_000)),
        ("a manifest of a number of 10 ** 5 digits", _raw_manifest(lambda: '{"a": ' + "9" * 100_000 + "}")),
    )
]  # fmt: skip


def _config(name: str, entry: str = "load=", *, is_accepted: bool = False, **changes: Any) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("huggingface", folder / "m")
        edited(path / "config.json", lambda content: content.update(changes))
        return path

    return Case(entry, f"config.json: {name}", write, is_accepted)


CONFIGS = [
    *(_config(f"{key} is {str(value)[:24]!r}", **{key: value})
      for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
      for value in (10**9, -1, 0, "2", 2.5, None, True, [], float("nan"), 10**200)),
    *(_config(f"{key} is {str(value)[:24]!r}", **{key: value}) for key, value in (
        ("layer_norm_epsilon", float("nan")), ("layer_norm_epsilon", -1), ("layer_norm_epsilon", "x"),
        ("resid_pdrop", 1.5), ("resid_pdrop", None),
        ("n_inner", 10**12), ("n_inner", "x"), ("initializer_range", float("inf")), ("activation_function", {}),
        ("model_type", ["gpt2"]), ("architectures", {"a": 1}), ("tie_word_embeddings", 3), ("eos_token_id", "x"),
        ("eos_token_id", [{}]), ("transformers_weights", "../x.safetensors"),
        ("transformers_weights", 7), ("transformers_weights", "/etc/passwd.safetensors"))),
    *(_config(f"{key} is {str(value)[:24]!r}", is_accepted=True, **{key: value}) for key, value in (
        ("layer_norm_epsilon", 10**200), ("layer_norm_epsilon", 0), ("id2label", {"x" * 1000: 1}))),
    _config("num_labels is 10 ** 9", architectures=["GPT2ForSequenceClassification"], num_labels=10**9),
    _config("a converted model of 10 ** 9 layers", "convert", n_layer=10**9),
    Case("load=", "config.json: nested 100,000 deep", lambda f: _text(f, "config.json", "[" * 100_000)),
    Case("load=", "config.json: 70 MB", lambda f: _text(f, "config.json", '{"a": "' + "x" * (70 << 20) + '"}')),
    Case("load=", "config.json: an object of a million objects",
         lambda f: _text(f, "config.json", '{"a": [' + '{"b":{}},' * 1_000_000 + "0]}")),
    Case("load=", "generation_config.json: a list", lambda f: _text(f, "generation_config.json", "[1]")),
    Case("load=", "generation_config.json: eos_token_id is a text",
         lambda f: _text(f, "generation_config.json", '{"eos_token_id": "0"}')),
    *(Case("load=", f"index of shards: {name}", lambda f, map=map: _index(f, map)) for name, map in (
        ("../", {"a": "../x.safetensors"}), ("absolute", {"a": "/etc/passwd"}), ("absent", {"a": "b.safetensors"}),
        ("a number", {"a": 7}), ("empty", {}), ("a list", ["a"]), ("itself", {"a": "model.safetensors.index.json"}),
        ("a million names", {str(i): "b.safetensors" for i in range(300_000)}))),
]  # fmt: skip


def _text(folder: Path, name: str, content: str) -> Path:
    path = seeds.copy("huggingface", folder / "m")
    (path / name).write_text(content)
    return path


def _index(folder: Path, weight_map: Any) -> Path:
    path = seeds.copy("huggingface", folder / "m")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def _adapter(name: str, *, is_accepted: bool = False, **changes: Any) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("adapter", folder / "a")
        edited(path / "adapter_config.json", lambda content: content.update(changes))
        return path

    return Case("adapters=", f"adapter_config.json: {name}", write, is_accepted)


ADAPTERS = [
    *(_adapter(f"{key} is {str(value)[:24]!r}", **{key: value}) for key, value in (
        ("r", 10**9), ("r", "x"), ("r", -1), ("r", None), ("r", True), ("lora_alpha", float("nan")), ("lora_alpha", "x"),
        ("lora_dropout", float("nan")), ("lora_dropout", "x"),
        ("lora_dropout", 7), ("target_modules", 7), ("target_modules", {"a": 1}), ("target_modules", "(a+)+$"),
        ("target_modules", "(" * 5000), ("target_modules", "(?:" * 500 + ")" * 500), 
        ("rank_pattern", {"(": 1}), ("alpha_pattern", {"c_attn": "x"}), ("alpha_pattern", {"((a|a)*)*b": 1}),
        ("exclude_modules", 3), ("layers_to_transform", "x"), ("layers_to_transform", [[]]), ("layers_pattern", 7),
        ("layers_pattern", "("), ("modules_to_save", 7), ("modules_to_save", [[]]), ("task_type", []), ("peft_type", {}),
        ("init_lora_weights", []), ("bias", {}))),
    *(_adapter(f"{key} is {str(value)[:24]!r}", is_accepted=True, **{key: value}) for key, value in (
        ("lora_alpha", 10**200), ("lora_alpha", 1e308), ("rank_pattern", []), ("use_rslora", "yes"))),
    Case("adapters=", "adapter_config.json: nested 100,000 deep", lambda f: _adapter_text(f, "[" * 100_000)),
]  # fmt: skip


def _adapter_text(folder: Path, content: str) -> Path:
    path = seeds.copy("adapter", folder / "a")
    (path / "adapter_config.json").write_text(content)
    return path


DIRECTORIES = [*MANIFESTS, *LINKS, *CONFIGS, *ADAPTERS]
