"""The tensors of PEFT's weight files: the factors of adapters, a classifier's head, and what gpt2x rejects.

PEFT stores `lora_A` (r, in) and `lora_B` (out, r), the transposes of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from gpt2x.checkpoint.tensors import StoredTensor, open_safetensors
from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.config.patterns import MODULES, SEGMENTS
from gpt2x.convert.tokenizer_files import TOKENIZER_FILES
from gpt2x.convert.torch_pickle import open_torch
from gpt2x.errors import UserError
from gpt2x.lora.peft_config import CONFIG_FILE, FIX
from gpt2x.model.stats import HEAD
from gpt2x.runtime.json_text import parse_json

WEIGHT_FILES = {"adapter_model.safetensors": open_safetensors, "adapter_model.bin": open_torch}
PREFIX = "base_model.model."
FACTOR = re.compile(rf"(transformer\.)?(h\.\d+\.(?:{'|'.join(map(re.escape, MODULES[len(SEGMENTS) :]))}))\.lora_(A|B)"
                    r"(?:\.default)?\.weight")  # fmt: skip
HEAD_NAMES = (HEAD, "score.modules_to_save.default.weight")
UNTRAINED_HEAD = "score.original_module.weight"
# what a name matches -> how the documentation calls it, and what it is; the first match counts
REJECTED = {
    r"(?!base_model\.model\.).*": ("without `base_model.model.`", "PEFT leaves out tensors without base_model.model."),
    r".*\.lora_embedding_[AB](\..*)?": ("`*.lora_embedding_A`, `*.lora_embedding_B`", "adapters of an embedding"),
    r".*\.lora_(A|B)\.(?!default\.)[^.]+\.weight": (
        "`*.lora_A.NAME.weight`",
        "of an adapter whose name is not default, so that PEFT leaves it out",
    ),
    r".*\.lora_magnitude_vector.*": ("`*.lora_magnitude_vector`", "magnitudes of DoRA (use_dora)"),
    r".*\.lora_[AB]\.(.*\.)?bias": ("`*.lora_B.bias`", "a bias of B (lora_bias)"),
    r".*\.(token_adapter|trainable_tokens)\b.*": ("`*.token_adapter.*`", "trained rows of the embedding"),
    r".*\b(wte|wpe|lm_head|ln_\w+)\.(.*\.)?(weight|bias)": (
        "`wte`, `wpe`, `lm_head`, `ln_*`",
        "trained or resized embeddings, a head or norms (modules_to_save, save_embedding_layers), or adapters of them",
    ),
    r".*\.bias": ("`*.bias`", "trained biases (bias)"),
}
PLACES = f"LoRA on GPT-2's {', '.join(MODULES[len(SEGMENTS) :])} and a classifier's {HEAD}"

FORMAT = Format(
    title="PEFT: adapter_model.safetensors, adapter_model.bin",
    what="The tensors of an adapter. If both files exist, the first is read, as PEFT does. The names say which model "
    "was adapted: those of a `GPT2Model` have no `transformer.`.",
    entries=(
        Entry("base_model.model.[transformer.]h.N.MODULE.lora_A.weight", Use.READ, "and `lora_B`; any dtype, as fp32"),
        Entry("base_model.model.[transformer.]h.N.MODULE.lora_A.default.weight", Use.READ, "and `lora_B`"),
        *(Entry(PREFIX + name, Use.READ, "a classifier's head") for name in HEAD_NAMES),
        Entry(PREFIX + UNTRAINED_HEAD, Use.IGNORED, "the head before training"),
        *(Entry(name.strip("`"), Use.REJECTED, what) for name, what in REJECTED.values()),
    ),
    others="rejected by name.",
)
FILES = Format(
    title="PEFT: files of an adapter's directory",
    what="What `save_pretrained` and trainers write into the directory of an adapter.",
    entries=(
        Entry(CONFIG_FILE, Use.READ),
        *(Entry(name, Use.READ, "see its tensors") for name in WEIGHT_FILES),
        *entries(Use.IGNORED, TOKENIZER_FILES, "the tokenizer is that of `load=`"),
        *entries(Use.IGNORED, ("README.md", "training_args.bin", "optimizer.pt", "scheduler.pt", "trainer_state.json")),
        Entry("NAME/adapter_config.json", Use.READ, "a further adapter, if `adapters=` names its directory"),
    ),
    others="ignored.",
)  # fmt: skip


@dataclass(frozen=True)
class PeftTensors:
    """The tensors of an adapter.

    Attributes:
        prefix: before the names of modules in the model that was adapted: `transformer.`, or nothing.
        factors: module -> A (in, r) and B (r, out) in fp32; a module is called, for example, `h.0.attn.c_attn`.
        head: a classifier's `score.weight` (K, D); None if there is none.
        labels: names of the classes; None if the file does not state them.
    """

    prefix: str
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    head: np.ndarray | None
    labels: list[str] | None


def open_tensors(path: Path) -> PeftTensors:
    """Read the weight file of a PEFT directory.

    Raises:
        UserError: there is none, or it has tensors that gpt2x does not read, or lacks some.
    """
    where, stored = f"adapters={path}", open_weights(path)
    prefixes: set[str] = set()
    pairs: dict[str, dict[str, np.ndarray]] = {}
    head: np.ndarray | None = None
    for name, tensor in stored.items():
        short = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
        if match := FACTOR.fullmatch(short):
            prefixes.add(match[1] or "")
            pair = pairs.setdefault(match[2], {})
            if match[3] in pair:
                raise UserError(f"{where}: {match[2]}.lora_{match[3]} occurs twice. Remove one of the two.")
            pair[match[3]] = matrix(tensor, name, where).T
        elif short in HEAD_NAMES:
            head = matrix(tensor, name, where)
        elif short != UNTRAINED_HEAD:
            raise UserError(
                f"{where}: the weight file has {name} ({what_is(name)}), and gpt2x reads only {PLACES}. {FIX}"
            )
    halves = [module for module, pair in pairs.items() if len(pair) < 2 or pair["A"].shape[1] != pair["B"].shape[0]]
    if halves or not pairs:
        raise UserError(
            f"{where}: the tensors are not those of {PLACES} (incomplete: {', '.join(halves) or 'all'}). "
            "Give an adapter of a GPT-2."
        )
    if len(prefixes) > 1 or (head is not None and "" in prefixes):
        raise UserError(
            f"{where}: some tensors are of a bare GPT2Model and some of a model with a head (names with and without "
            "transformer.), and PEFT would leave out one of both. Save the adapter again."
        )
    factors = {module: (np.ascontiguousarray(pair["A"]), np.ascontiguousarray(pair["B"]))
               for module, pair in pairs.items()}  # fmt: skip
    return PeftTensors(prefixes.pop(), factors, head, None if head is None else labels_of(path))


def open_weights(path: Path) -> dict[str, StoredTensor]:
    """Open the weight file; the values of its tensors are not read."""
    for name, open_file in WEIGHT_FILES.items():
        if (path / name).is_file():
            return open_file(path / name)
    raise UserError(
        f"adapters={path} has {CONFIG_FILE} but no weights: none of {', '.join(WEIGHT_FILES)} exists. "
        "Copy or download them."
    )


def matrix(tensor: StoredTensor, name: str, where: str) -> np.ndarray:
    """Read a matrix as fp32.

    Raises:
        UserError: it has a different number of dimensions, or no values.
    """
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise UserError(
            f"{where}: {name} has the shape {tensor.shape} and is not a matrix: it was saved while its values were on "
            "several devices (DeepSpeed, FSDP). Gather them before save_pretrained."
        )
    return np.asarray(tensor.read(), np.float32)


def what_is(name: str) -> str:
    """Return what a tensor is that gpt2x does not read."""
    return next((what for pattern, (_, what) in REJECTED.items() if re.fullmatch(pattern, name)), "no tensor of LoRA")


def labels_of(path: Path) -> list[str] | None:
    """Return the classes that `export_peft` wrote into the weight file's metadata; PEFT's files name none."""
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, "numpy") as opened:
        labels = (opened.metadata() or {}).get("labels")
    return None if labels is None else parse_json(labels, f"{file}: its labels", "Write the adapter again.")
