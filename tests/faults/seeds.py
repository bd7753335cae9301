"""Small valid files of every format, which the hostile inputs and the fuzzers spoil."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt2x.checkpoint import save
from gpt2x.checkpoint.manifest import MANIFEST, seal
from gpt2x.convert.mindspore_ckpt import write_ckpt
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.model.stats import tensor_shapes
from gpt2x.train.state import LoopState
from tests.support.bare_weights import bare_model, write_huggingface
from tests.support.configs import typed
from tests.support.mindformers import TINY, parameters_of, write_yaml
from tests.support.small_runs import WORDS

MODEL = bare_model(hidden_size=8, max_seq_len=16)


def weights() -> dict[str, np.ndarray]:
    """Return the weights of `MODEL`."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.02, shape).astype(np.float32) for name, shape in tensor_shapes(MODEL).items()}


def huggingface(folder: Path) -> Path:
    """A directory with config.json, model.safetensors and a tokenizer."""
    return write_huggingface(folder, MODEL)


def torch_file(folder: Path) -> Path:
    """A directory whose weights are a torch.save file."""
    write_huggingface(folder, MODEL, tokenizer=False)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_bytes(weights()))
    return folder


POSITION = LoopState(
    step=1, num_updates=1, recent=[(6.5, 1.25)], best_step=1, best_value=6.5, bests={"val/loss": (6.5, 1)},
    open_hook="Evaluate", open_metrics={"train/loss": "NaN"},
)  # fmt: skip


def checkpoint(folder: Path) -> Path:
    """A checkpoint of a training, with optimizer states and a tokenizer."""
    values = weights()
    config = asdict(typed("train", "trainer.max_steps=2")) | {"model": asdict(MODEL)}
    save(
        folder,
        tensors={"weights": values, "optimizer": {f"m.{name}": value for name, value in values.items()}},
        model=MODEL,
        run_config=config,
        loop_state=asdict(POSITION),
        tokenizer_dir_writer=lambda target: byte_level_bpe.train(iter([" ".join(WORDS)] * 3), 280).save(target),
        special_ids={"config": {"eos_token_id": 0}, "generation": {"eos_token_id": 0}},
    )
    return folder


def adapter(folder: Path) -> Path:
    """A PEFT adapter of one module."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    shapes = {"A": (2, 8), "B": (24, 2)}
    save_file({name.format(k): np.ones(s, np.float32) for k, s in shapes.items()}, folder / "adapter_model.safetensors")
    return folder


def mindformers(folder: Path) -> Path:
    """A file of MindFormers and its YAML file."""
    folder.mkdir()
    write_ckpt(folder / "a.ckpt", parameters_of(TINY))
    write_yaml(folder / "a.yaml", TINY)
    return folder / "a.ckpt"


def tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer."""
    byte_level_bpe.train(iter([" ".join(WORDS)] * 3), 280).save(folder)
    return folder


def generic(folder: Path) -> Path:
    """A tokenizer.json of several parts, which the generic class takes as it is."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)], 0, False)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex("[0-9]+"), "isolated"), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Strip(" ", 1, 0), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", 1)])
    backend.add_special_tokens([tokenizers.AddedToken("</s>", special=True, normalized=False)])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def vocabulary(folder: Path) -> Path:
    """A tokenizer of vocab.json and merges.txt."""
    byte_level_bpe.train(iter([" ".join(WORDS)] * 3), 280).save(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    return folder


def texts(folder: Path) -> Path:
    """Data, prompts and a template."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [{"text": "a b\nc", "label": 1}, {"text": 'x "y", z', "label": 0}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.json").write_text(json.dumps({"data": rows}))
    (folder / "a.csv").write_text('text,label\n"a, ""b""\nc",1\nx,0\n')
    (folder / "a.tsv").write_text('text\tlabel\n"a\t""b"""\t1\nx\t0\n')
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"some text in lines\n" * 50, mtime=0))
    (folder / "prompts.jsonl").write_text('{"prompt": "To be"}\n{"instruction": "a", "input": "b"}\n')
    (folder / "template.yaml").write_text('with_input: "{instruction} {input}:"\nwithout_input: "{instruction}:"\n')
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), folder / "a.parquet")
    return folder


@cache
def kept(kind: str) -> Path:
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="hostile-seed-"))
    SEEDS[kind](root / "seed")
    return root / "seed"


SEEDS: dict[str, Callable[[Path], Path]] = {
    "huggingface": huggingface,
    "torch": torch_file,
    "checkpoint": checkpoint,
    "adapter": adapter,
    "mindformers": mindformers,
    "tokenizer": tokenizer,
    "generic": generic,
    "vocabulary": vocabulary,
    "texts": texts,
}


def copy(kind: str, folder: Path) -> Path:
    """Copy a seed, which is made once per process, to `folder`."""
    shutil.copytree(kept(kind), folder)
    return folder


def remove() -> None:
    """Delete the seeds of this process."""
    for kind in SEEDS:
        shutil.rmtree(kept(kind).parent, ignore_errors=True)
    kept.cache_clear()


def edited(file: Path, change: Callable[[Any], Any]) -> Path:
    """Change the content of a JSON file; `change` alters it, or returns another one."""
    content = json.loads(file.read_text(encoding="utf-8"))
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")
    return file


def resealed(folder: Path, change: Callable[[Any], Any]) -> Path:
    """Change a manifest, and give it the hash of its new content, as anybody can."""

    def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest.pop("sha256")
        change(manifest)
        return manifest | {"sha256": seal(manifest)}

    edited(folder / MANIFEST, sealed)
    return folder


def safetensors_bytes(header: object, values: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header; `length`: what it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def text_opcode(text: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def tensor_opcodes(key: str, shape: tuple[int, ...], strides: tuple[int, ...], elements: int, offset: int = 0) -> bytes:
    """The opcodes with which torch.save describes a tensor of float32."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", n) if abs(n) < 1 << 31 else b"\x8a\x08" + struct.pack("<q", n)
                               for n in values) + b"t"  # fmt: skip

    storage = b"(" + text_opcode("storage") + b"ctorch\nFloatStorage\n" + text_opcode(key) + text_opcode("cpu")
    storage += b"\x8a\x08" + struct.pack("<q", elements) + b"tQ"
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"\x8a\x08" + struct.pack("<q", offset) + numbers(shape)
            + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")  # fmt: skip


def torch_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A torch.save file."""
    pickled = b"\x80\x02}("
    for number, (name, values) in enumerate(tensors.items()):
        strides = tuple(step // 4 for step in np.ascontiguousarray(values).strides)
        pickled += text_opcode(name) + tensor_opcodes(str(number), values.shape, strides, values.size)
    members = {f"a/data/{number}": values.tobytes() for number, values in enumerate(tensors.values())}
    return zipped({"a/data.pkl": pickled + b"u."} | members)


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
