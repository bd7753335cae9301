"""MindFormers' names of GPT-2's parameters, and their values as logical tensors (mindformers/models/gpt2, releases
0.3 to 1.3).

`attention.dense1`, `dense2` and `dense3` are the queries, keys and values: linears whose weights are (out, in), so they
are transposed and put side by side into `attn.c_attn`. All other matrices are (in, out), as GPT-2's. Factors of
mindpet's LoRA are A (r, in) and B (out, r); a linear computes x (W + alpha / r (B A)^T).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, Shape, Spec
from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.convert.mindspore_ckpt import Readable
from gpt2x.errors import UserError
from gpt2x.model.stats import HEAD

BLOCKS = "backbone.blocks."
SEGMENTS = ("dense1", "dense2", "dense3")  # queries, keys, values
OUTER = {
    "backbone.layernorm.gamma": "ln_f.weight",
    "backbone.layernorm.beta": "ln_f.bias",
    "backbone.embedding.word_embedding.embedding_table": "wte.weight",
    "backbone.embedding.position_embedding.embedding_table": "wpe.weight",
    "score.weight": HEAD,
}
# linear within a block -> its logical name
LINEARS = {
    "attention.projection": "attn.c_proj",
    "output.mapping": "mlp.c_fc",
    "output.projection": "mlp.c_proj",
}
# within a block, in the order in which MindFormers' converter writes them; of c_attn, the name of the queries' part
WITHIN = {
    "layernorm1.gamma": "ln_1.weight",
    "layernorm1.beta": "ln_1.bias",
    "layernorm2.gamma": "ln_2.weight",
    "layernorm2.beta": "ln_2.bias",
    "attention.projection.weight": "attn.c_proj.weight",
    "attention.projection.bias": "attn.c_proj.bias",
    "attention.dense1.weight": "attn.c_attn.weight",
    "attention.dense1.bias": "attn.c_attn.bias",
    "attention.dense2.weight": "attn.c_attn.weight",
    "attention.dense2.bias": "attn.c_attn.bias",
    "attention.dense3.weight": "attn.c_attn.weight",
    "attention.dense3.bias": "attn.c_attn.bias",
    "output.mapping.weight": "mlp.c_fc.weight",
    "output.mapping.bias": "mlp.c_fc.bias",
    "output.projection.weight": "mlp.c_proj.weight",
    "output.projection.bias": "mlp.c_proj.bias",
}
# spelling of release 0.3 -> of all later ones
OLD_PREFIXES = {"gpt2.backbone.": "backbone.", "backbone.transformer.encoder.blocks.": BLOCKS}
FACTOR = re.compile(
    rf"{re.escape(BLOCKS)}(\d{{1,6}})\.({'|'.join(re.escape(name) for name in LINEARS)}|attention\.dense[123])"
    r"\.(?:mindpet|tk)_delta_lora_([abAB])"
)

MINDFORMERS_NAMES = Format(
    "MindFormers: parameters of a .ckpt file",
    "The names of MindFormers 0.3 to 1.3, with `N` for a layer and `*` for any text; MindSpore defines the file.",
    (
        *(Entry(name, Use.READ, f"`{logical}`") for name, logical in OUTER.items()),
        *(
            Entry(
                f"{BLOCKS}N.{name}",
                Use.READ,
                f"`h.N.{logical}`, columns of {name.split('.')[1]}" if "dense" in name else f"`h.N.{logical}`",
            )
            for name, logical in WITHIN.items()
        ),
        *entries(Use.READ, ("gpt2.backbone.*", "backbone.transformer.encoder.blocks.*"), "release 0.3's spelling"),
        Entry("*.mindpet_delta_lora_a", Use.READ, "LoRA's A; `lora_alpha` comes from the YAML file beside it"),
        Entry("*.mindpet_delta_lora_b", Use.READ, "LoRA's B"),
        *entries(Use.READ, ("*.tk_delta_lora_a", "*.tk_delta_lora_b"), "the same in old releases of mindpet"),
        *entries(
            Use.REJECTED,
            (f"{BLOCKS}N.output.ffn.*", f"{BLOCKS}N.output.router.*", f"{BLOCKS}N.output.shared_ffn.*"),
            "experts (MoE), which gpt2x lacks",
        ),
        *entries(
            Use.IGNORED,
            (
                "adam_m.*",
                "adam_v.*",
                "moment1.*",
                "moment2.*",
                "moments.*",
                "exp_avg*",
                "accu_grads.*",
                "accu_grad.*",
                "beta1_power",
                "beta2_power",
                "learning_rate",
                "weight_decay",
                "afactor_step",
                "global_step",
                "epoch_num",
                "step_num",
                "loss_scale",
                "scale_sense",
                "current_iterator_step",
                "last_overflow_iterator_step",
                "global_batch_size",
            ),
            "state of an optimizer or of training; a notice says that training starts anew",
        ),
        *entries(Use.IGNORED, (f"{BLOCKS}N.key_past", f"{BLOCKS}N.value_past"), "a cache of decoding"),
        *entries(
            Use.IGNORED, (f"{BLOCKS}N.attention.beta", f"{BLOCKS}N.attention.masked_beta"), "the constant causal mask"
        ),
    ),
    "listed as unexpected, and nothing is loaded.",
)
STATES = "state of an optimizer or of training"


@dataclass(frozen=True)
class Factors:
    """LoRA's two factors beside a linear: A (r, in) and B (out, r)."""

    a: Readable
    b: Readable

    def box(self, rows: slice, columns: slice, scale: float) -> np.ndarray:
        """Return what LoRA adds in a box of the weight (in, out): scale (B A)^T, in fp32."""
        rank = self.a.shape[0]
        a = self.a.read((0, rows.start), (rank, rows.stop - rows.start)).astype(np.float32)
        b = self.b.read((columns.start, 0), (columns.stop - columns.start, rank)).astype(np.float32)
        return a.T @ b.T * np.float32(scale)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a GPT-2, by MindFormers' names without old spellings.

    Attributes:
        weights: those of the model.
        factors: linear, such as `backbone.blocks.0.attention.dense1` -> LoRA's factors.
        num_states: how many parameters were states of an optimizer or of training.
    """

    weights: dict[str, Readable]
    factors: dict[str, Factors]
    num_states: int

    @property
    def num_layers(self) -> int:
        """Number of blocks that have a weight."""
        numbers = [int(name.split(".")[2]) for name in self.weights if name.startswith(BLOCKS)]
        return max(numbers, default=-1) + 1

    @property
    def rank(self) -> int | None:
        """The rank of LoRA's factors, or None."""
        return next((pair.a.shape[0] for pair in self.factors.values()), None)


def sort_parameters(stored: Mapping[str, Readable], origin: str) -> Parameters:
    """Return the parameters of a GPT-2, each as what `MINDFORMERS_NAMES` says of it.

    Raises:
        UserError: experts, an unexpected name, a name in two spellings, or half of a pair of factors.
    """
    weights: dict[str, Readable] = {}
    halves: dict[str, dict[str, Readable]] = {}
    unexpected, num_states = [], 0
    for name, tensor in stored.items():
        short = plain_name(name)
        match = FACTOR.fullmatch(short)
        if match or is_weight(short):
            place = halves.setdefault(f"{BLOCKS}{match[1]}.{match[2]}", {}) if match else weights
            key = match[3].lower() if match else short
            if key in place:
                raise UserError(f"{origin}: {short} occurs twice, in two spellings. Remove one of them.")
            place[key] = tensor
            continue
        entry = _entry(short)
        if entry is None:
            unexpected.append(name)
        elif entry.use is Use.REJECTED:
            raise UserError(f"{origin}: {name} is a parameter of {entry.note}. Give a model without them.")
        elif entry.note.startswith(STATES):
            num_states += 1
    if unexpected or not (weights or halves):
        shown = ", ".join(unexpected[:5]) + (f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else "")
        fault = f"unexpected: {shown}" if unexpected else "it has none of them"
        raise UserError(
            f"{origin} has not the parameters of MindFormers' GPT-2 ({fault}). Give a checkpoint of GPT2LMHeadModel or "
            " GPT2ForSequenceClassification."
        )
    return Parameters(weights, _pairs(halves, origin), num_states)


def plain_name(name: str) -> str:
    """Return a name without the spelling of release 0.3."""
    for old, new in OLD_PREFIXES.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def is_weight(name: str) -> bool:
    """Return whether a name is one of the model's weights."""
    match = re.fullmatch(rf"{re.escape(BLOCKS)}\d{{1,6}}\.(.*)", name)
    return match[1] in WITHIN if match else name in OUTER


def _entry(name: str) -> Entry | None:
    """Return what `MINDFORMERS_NAMES` says of a name that is no weight and no factor, or None."""
    return next((entry for pattern, entry in PATTERNS if pattern.fullmatch(name)), None)


PATTERNS = [
    (re.compile(re.escape(entry.name).replace(r"\*", ".*").replace(r"\.N\.", r"\.\d+\.")), entry)
    for entry in MINDFORMERS_NAMES.entries
    if entry.use is not Use.READ
]


def _pairs(halves: Mapping[str, Mapping[str, Readable]], origin: str) -> dict[str, Factors]:
    """Return LoRA's factors in pairs of one rank.

    Raises:
        UserError: half of a pair is missing, or ranks differ.
    """
    pairs = {}
    for linear, half in halves.items():
        if len(half) < 2:
            raise UserError(f"{origin}: {linear} has only one of LoRA's two factors. Copy or download the file again.")
        a, b = half["a"], half["b"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise UserError(
                f"{origin}: LoRA's factors of {linear} have the shapes {a.shape} and {b.shape}, not (rank, in) and "
                "(out, rank). Give a checkpoint of MindFormers' LoRA."
            )
        pairs[linear] = Factors(a, b)
    if len({pair.a.shape[0] for pair in pairs.values()}) > 1:
        raise UserError(
            f"{origin}: LoRA's factors have different ranks, which MindFormers never writes. Give one file."
        )
    return pairs


def logical_tensors(parameters: Parameters, scale: float) -> LazyTensors:
    """Return the weights as logical tensors in their stored dtype, with LoRA's products added in fp32.

    Names, not shapes, decide: `gpt2x.convert.fit.check_weights` compares these with a model.

    Args:
        parameters: of a file or of joined slices.
        scale: of LoRA's products; not used if there are no factors.
    """
    sources: dict[str, list[str]] = {}
    for name in parameters.weights:
        sources.setdefault(logical_name(name), []).append(name)
    readers = {}
    for logical, names in sources.items():
        parts = sorted(names)  # dense1, dense2, dense3
        factors = [parameters.factors.get(name.removesuffix(".weight")) for name in parts]
        readers[logical] = _Logical([parameters.weights[name] for name in parts], factors, "dense" in parts[0], scale)
    return LazyTensors(
        {name: Spec(reader.shape, reader.dtype) for name, reader in readers.items()},
        lambda name, start, shape: readers[name].read(start, shape),
    )


def logical_name(name: str) -> str:
    """Return the logical name of a weight: `backbone.blocks.0.layernorm1.gamma` -> `h.0.ln_1.weight`."""
    if name in OUTER:
        return OUTER[name]
    number, _, within = name.removeprefix(BLOCKS).partition(".")
    return f"h.{int(number)}.{WITHIN[within]}"


class _Logical:
    """One logical tensor: a parameter, or the queries', keys' and values' parameters side by side."""

    def __init__(self, parts: list[Readable], factors: list[Factors | None], is_joined: bool, scale: float):
        self.parts, self.factors, self.scale = parts, factors, scale
        self.is_transposed = is_joined and len(parts[0].shape) == 2
        shapes = [part.shape[::-1] if self.is_transposed else part.shape for part in parts]
        fits = all(len(shape) == len(shapes[0]) and shape[:-1] == shapes[0][:-1] for shape in shapes)
        if is_joined and fits and len(parts) == len(SEGMENTS):
            self.shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        else:  # a shape that no model has, which check_weights lists
            self.shape = shapes[0]
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def read(self, start: Shape, shape: Shape) -> np.ndarray:
        """Return a box."""
        if len(self.parts) == 1 and self.factors[0] is None:
            return self.parts[0].read(start, shape)
        values = np.empty(shape, self.dtype)
        first = 0  # column of the part
        for part, factors in zip(self.parts, self.factors, strict=True):
            width = part.shape[0] if self.is_transposed else part.shape[-1]
            low, high = max(start[-1], first), min(start[-1] + shape[-1], first + width)
            if low < high:
                columns = slice(low - first, high - first)
                box = self._box(part, factors, start[:-1], shape[:-1], columns)
                values[..., low - start[-1] : high - start[-1]] = box
            first += width
        return values

    def _box(self, part: Readable, factors: Factors | None, start: Shape, shape: Shape, columns: slice) -> np.ndarray:
        """Return a box of one part, as logical rows and columns."""
        width = columns.stop - columns.start
        if self.is_transposed:
            values = part.read((columns.start, *start), (width, *shape)).T
        else:
            values = part.read((*start, columns.start), (*shape, width))
        if factors is None:
            return values
        rows = slice(start[0], start[0] + shape[0])
        return values.astype(np.float32) + factors.box(rows, columns, self.scale)


def reference_tensors(weights: LazyTensors, num_layers: int) -> LazyTensors:
    """Return logical tensors under MindFormers' names, in its shapes and in the order of its converter."""
    hidden = weights.shapes["wte.weight"][1]
    names = [f"{BLOCKS}{layer}.{within}" for layer in range(num_layers) for within in WITHIN]
    names += [name for name, logical in OUTER.items() if logical in weights]
    specs = {}
    for name in names:
        spec = weights.specs[logical_name(name)]
        shape = (*spec.shape[:-1], hidden) if _segment(name) is not None else spec.shape
        specs[name] = Spec(shape, spec.dtype)

    def read(name: str, start: Shape, shape: Shape) -> np.ndarray:
        segment = _segment(name)
        if segment is None:
            return weights.read(logical_name(name), start, shape)
        if len(start) == 1:
            return weights.read(logical_name(name), (segment * hidden + start[0],), shape)
        box = weights.read(logical_name(name), (start[1], segment * hidden + start[0]), shape[::-1])
        return np.ascontiguousarray(box.T)

    return LazyTensors(specs, read)


def _segment(name: str) -> int | None:
    """Return 0, 1 or 2 for the queries', keys' or values' linear, else None."""
    return next((number for number, part in enumerate(SEGMENTS) if f".{part}." in name), None)
