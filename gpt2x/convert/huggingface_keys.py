"""What is done with each key of a Hugging Face GPT-2's config.json (transformers' configuration_gpt2.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.convert.special_ids import CONFIG_IDS, GENERATION_FILE, OPTIONS

# key -> the second name that GPT2Config accepts, and its default
SIZES = {
    "n_layer": ("num_hidden_layers", 12),
    "n_head": ("num_attention_heads", 12),
    "n_embd": ("hidden_size", 768),
    "n_positions": ("max_position_embeddings", 1024),
    "vocab_size": (None, 50257),
}
RATES = {
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
}
# transformers' activations (activations.py, ACT2FN) -> gpt2x's; names with the same value are one formula
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "fast_gelu",
}
# key -> the values with which gpt2x computes what transformers does, and what any other value means
SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "add_cross_attention": ((False,), "the model attends to an encoder"),
    "is_encoder_decoder": ((False,), "the model has an encoder"),
    "quantization_config": ((None,), "the weights are quantized; load and save them dequantized with transformers"),
    "per_layer_config": ((None, {}), "layers differ in their shape"),
    "pruned_heads": ((None, {}), "layers differ in the number of their heads"),
}
# a notice names these keys if they have a value
NOTICED = {"auto_map": "names code in the directory, which is never run (trust_remote_code=False in transformers)"}

FORM_OF_OUTPUT = (
    "output_hidden_states", "output_attentions", "output_past", "return_dict", "use_return_dict", "torchscript",
    "chunk_size_feed_forward", "gradient_checkpointing", "tie_last_hidden_states",
)  # fmt: skip
BOOKKEEPING = (
    "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "finetuning_task", "task_specific_params",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "tf_legacy_loss", "use_bfloat16",
    "xla_device", "tokenizer_class", "prefix", "line_by_line", "embd_dim", "model_max_length",
)  # fmt: skip
SUMMARY = (
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "predict_special_tokens", "afn", "nX", "n_special", "n_vocab",
)  # fmt: skip
ENCODER_DECODER = (
    "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "decoder_start_token_id", "sep_token_id",
)  # fmt: skip
GENERATION = tuple(name for name in OPTIONS if name not in {*FORM_OF_OUTPUT, *BOOKKEEPING, *ENCODER_DECODER})


def _entries() -> Iterable[Entry]:
    yield Entry("model_type", Use.READ, "`gpt2`; any other model is rejected")
    yield Entry(
        "architectures", Use.READ, "`GPT2ForSequenceClassification` is a classifier, any other a language model"
    )
    for key, (synonym, default) in SIZES.items():
        also = f", also `{synonym}`; two different values are rejected" if synonym else ""
        yield Entry(key, Use.READ, f"a positive whole number, by default {default}{also}")
        if synonym:
            yield Entry(synonym, Use.READ, f"the same as `{key}`")
    yield Entry("n_inner", Use.READ, "a positive whole number; null: 4 `n_embd`")
    yield Entry("activation_function", Use.READ, f"{', '.join(ACTIVATIONS)}; any other is rejected")
    yield from (Entry(key, Use.READ, f"a number, by default {default}") for key, default in RATES.items())
    yield Entry(
        "tie_word_embeddings", Use.READ,
        "by default true. As in transformers, a head in the file that differs from the embedding is used nevertheless",
    )  # fmt: skip
    yield Entry("scale_attn_weights", Use.READ, "false: attention scores are not divided by sqrt(head size)")
    yield Entry(
        "scale_attn_by_inverse_layer_idx", Use.READ, "true: attention scores of layer i are divided by i + 1. The "
        "weights and biases of queries are multiplied with this factor when they are read, so that export writes false",
    )  # fmt: skip
    yield Entry("num_labels", Use.READ, "classes of a classifier; 1: a head of one score")
    yield Entry("id2label", Use.READ, "names of the classes; the ids count from 0")
    yield Entry(
        "problem_type", Use.READ, "null, `single_label_classification`, or `regression` of one score; "
        "`multi_label_classification` and a regression of several scores are rejected",
    )  # fmt: skip
    yield Entry("transformers_weights", Use.READ, "the file of weights, or its index, if it has a different name")
    yield from CONFIG_IDS
    for key, (values, meaning) in SUPPORTED.items():
        allowed = " or ".join("null" if value is None else str(value).lower() for value in values)
        yield Entry(key, Use.REJECTED, f"unless {allowed}: {meaning}")
    yield from (Entry(key, Use.IGNORED, f"a notice: it {meaning}") for key, meaning in NOTICED.items())
    yield from entries(Use.IGNORED, ("dtype", "torch_dtype"), "values are read in the dtype of the file")
    yield Entry("n_ctx", Use.IGNORED, "as in transformers: `n_positions` decides")
    yield Entry("label2id", Use.IGNORED, "`id2label` decides")
    yield Entry("_num_labels", Use.IGNORED, "`num_labels` and `id2label` decide")
    yield Entry("reorder_and_upcast_attn", Use.IGNORED, "an order of the same products; scores are fp32 anyway")
    yield from entries(Use.IGNORED, SUMMARY, "of a second head that is not loaded, or of old versions")
    yield from entries(Use.IGNORED, ENCODER_DECODER, "of models with an encoder")
    yield from entries(Use.IGNORED, GENERATION, f"decoding options, as in {GENERATION_FILE} if there is none")
    yield from entries(Use.IGNORED, FORM_OF_OUTPUT, "the form of transformers' output, or its memory")
    yield from entries(Use.IGNORED, BOOKKEEPING, "bookkeeping that changes no number")


CONFIG_KEYS = Format(
    title="Hugging Face: config.json",
    what="The shape of a GPT-2 that `load=` names. transformers defines it (GPT2Config).",
    entries=tuple(_entries()),
    others="ignored, as in transformers; one notice names the keys.",
)
