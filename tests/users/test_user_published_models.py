"""Shapes of config.json and files of published GPT-2s, as their public pages describe them, scaled down in width.

Each loads as transformers does, with the same logits, or is rejected by a message that names the cause. docs/models.md
lists which.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gpt2x.convert import load_source
from gpt2x.errors import UserError
from tests.support.huggingface import TINY, by_gpt2x, by_transformers, state_of, write_config, write_weights

pytestmark = pytest.mark.parity

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
           "summary_type": "cls_index", "summary_use_proj": True, "predict_special_tokens": True,
           "n_special": 0}  # fmt: skip
OLD = {"n_ctx": 12, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}} | SUMMARY
NEW = {"n_inner": None, "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
       "scale_attn_weights": True, "use_cache": True, "torch_dtype": "float32", "transformers_version": "4.12.3",
       } | SUMMARY  # fmt: skip
ONE_LABEL = {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
MISTRAL = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
SCORE = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
         "pad_token_id": 0} | OLD  # fmt: skip
SENTIMENT = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
             "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "problem_type": "single_label_classification",
             "pad_token_id": 0} | NEW  # fmt: skip
CEREBRAS = {"architectures": ["GPT2Model"], "activation_function": "gelu", "n_inner": 32, "attn_pdrop": 0.0,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "scale_attn_weights": True, "use_cache": True,
            "transformers_version": "4.20.0.dev0", "unk_token_id": 0}  # fmt: skip
CHINESE = OLD | {"tokenizer_class": "BertTokenizer", "output_past": True, "gradient_checkpointing": False}
BAD_WORDS = {"bad_words_ids": None, "num_beams": 1, "prefix": None, "pruned_heads": {}, "sep_token_id": None,
             "tf_legacy_loss": False, "torchscript": False, "use_bfloat16": False, "xla_device": None,
             "tie_encoder_decoder": False, "is_decoder": False, "is_encoder_decoder": False}  # fmt: skip

# name -> (config.json, form of the weights, what is special about them)
LOADED = {
    "openai-community/gpt2": (OLD, "zip", "bare masks"),
    "openai-community/gpt2-medium": (OLD, "safetensors", "bare masks"),
    "openai-community/gpt2-large": (OLD, "legacy", "bare masks"),
    "openai-community/gpt2-xl": (OLD | {"output_past": True}, "safetensors", "bare"),
    "distilbert/distilgpt2": (OLD | ONE_LABEL, "legacy", "masks head"),
    "sshleifer/tiny-gpt2": (OLD, "legacy", "masks"),
    "microsoft/DialoGPT-small": (OLD, "legacy", "masks head half"),
    "microsoft/DialoGPT-medium": (OLD, "legacy", "masks head half"),
    "microsoft/DialoGPT-large": (OLD, "legacy", "masks head half"),
    "microsoft/DialogRPT-updown": (SCORE, "legacy", "masks score1"),
    "microsoft/DialogRPT-width": (SCORE, "legacy", "masks score1"),
    "microsoft/DialogRPT-depth": (SCORE, "legacy", "masks score1"),
    "microsoft/DialogRPT-human-vs-rand": (SCORE, "legacy", "masks score1"),
    "microsoft/DialogRPT-human-vs-machine": (SCORE, "legacy", "masks score1"),
    "cerebras/Cerebras-GPT-111M": (CEREBRAS, "zip", "masks head"),
    "cerebras/Cerebras-GPT-256M": (CEREBRAS, "zip", "masks head"),
    "cerebras/Cerebras-GPT-590M": (CEREBRAS, "zip", "masks head"),
    "cerebras/Cerebras-GPT-1.3B": (CEREBRAS, "zip", "masks head"),
    "cerebras/Cerebras-GPT-2.7B": (CEREBRAS, "zip shards", "masks head"),
    "cerebras/Cerebras-GPT-6.7B": (CEREBRAS, "zip shards", "masks head"),
    "cerebras/Cerebras-GPT-13B": (CEREBRAS, "zip shards", "masks head"),
    "uer/gpt2-chinese-cluecorpussmall": (CHINESE, "zip", "masks head"),
    "uer/gpt2-chinese-poem": (CHINESE, "zip", "masks head"),
    "uer/gpt2-distil-chinese-cluecorpussmall": (CHINESE | {"n_layer": 1}, "zip", "masks head"),
    "ckiplab/gpt2-base-chinese": (CHINESE | {"tokenizer_class": "BertTokenizerFast"}, "zip", "masks head"),
    "IDEA-CCNL/Wenzhong-GPT2-110M": (NEW | {"tokenizer_class": "BertTokenizer"}, "zip", "masks head"),
    "rinna/japanese-gpt2-small": (NEW | {"tokenizer_class": "T5Tokenizer", "bos_token_id": 1, "eos_token_id": 2}, "zip",
                                  "masks head"),
    "rinna/japanese-gpt2-xsmall": (NEW | {"n_inner": 36, "bos_token_id": 1, "eos_token_id": 2}, "zip", "masks head"),
    "rinna/japanese-gpt-1b": (NEW | {"n_inner": 32, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3},
                              "safetensors", "half"),
    "skt/kogpt2-base-v2": (OLD | ONE_LABEL | {"author": "A. Name", "created_date": "2021-04-28", "license": "CC",
                                              "pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 1,
                                              "gradient_checkpointing": False}, "zip", "masks head"),
    "aubmindlab/aragpt2-base": (OLD | {"gradient_checkpointing": False}, "zip", "masks head"),
    "dbmdz/german-gpt2": (NEW | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "zip", "masks head"),
    "LorenzoDeMattei/GePpeTto": (OLD, "legacy", "masks head"),
    "GroNLP/gpt2-small-dutch": (OLD, "legacy", "masks head"),
    "GroNLP/gpt2-small-italian": (OLD, "legacy", "masks head"),
    "pierreguillou/gpt2-small-portuguese": (OLD, "legacy", "masks head"),
    "ai-forever/rugpt3small_based_on_gpt2": (OLD, "legacy", "masks head"),
    "ai-forever/rugpt3large_based_on_gpt2": (OLD | {"n_ctx": 2048}, "legacy", "masks head"),
    "datificate/gpt2-small-spanish": (OLD, "legacy", "masks head"),
    "PlanTL-GOB-ES/gpt2-base-bne": (NEW, "zip", "masks head"),
    "flax-community/papuGaPT2": (NEW, "zip", "masks head"),
    "cahya/gpt2-small-indonesian-522M": (OLD, "legacy", "masks head"),
    "flax-community/gpt2-base-thai": (NEW, "zip", "masks head"),
    "redrussianarmy/gpt2-turkish-cased": (OLD, "legacy", "masks head"),
    "NlpHUST/gpt2-vietnamese": (NEW, "zip", "masks head"),
    "surajp/gpt2-hindi": (OLD | {"gradient_checkpointing": False}, "zip", "masks head"),
    "asi/gpt-fr-cased-small": (OLD | {"n_inner": 32, "activation_function": "gelu_new"}, "zip", "masks head"),
    "HooshvareLab/gpt2-fa": (OLD | {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}, "zip", "masks head"),
    "AI-Sweden-Models/gpt-sw3-126m": (NEW | {"activation_function": "gelu", "n_inner": 32, "normalize_attention_scores":
                                             True, "apply_query_key_layer_scaling": True}, "safetensors", "head"),
    "codeparrot/codeparrot": (NEW | MISTRAL, "zip", "masks head"),
    "codeparrot/codeparrot-small": (NEW | MISTRAL, "zip", "masks head"),
    "stanford-crfm/alias-gpt2-small-x21": (NEW | MISTRAL, "zip", "masks head"),
    "stanford-crfm/BioMedLM": (NEW | MISTRAL | {"tokenizer_class": "GPT2Tokenizer"}, "zip", "head"),
    "microsoft/CodeGPT-small-py": (OLD, "legacy", "masks head"),
    "nvidia/megatron-gpt2-345m": (NEW | {"n_inner": 32, "tokenizer_type": "GPT2BPETokenizer"}, "zip", "masks head"),
    "Gustavosta/MagicPrompt-Stable-Diffusion": (NEW | BAD_WORDS, "zip", "masks head"),
    "lvwerra/gpt2-imdb": (OLD, "legacy", "masks head"),
    "lvwerra/gpt2-imdb-pos-v2": (NEW | {"architectures": ["GPT2LMHeadModel"]}, "zip", "masks head v_head"),
    "mnoukhov/gpt2-imdb-sentiment-classifier": (SENTIMENT, "safetensors", "score2"),
    "a reward model with one logit": (SENTIMENT | {"id2label": {"0": "LABEL_0"}, "problem_type": None}, "safetensors",
                                      "score1"),
    "a model with double heads": (OLD | {"architectures": ["GPT2DoubleHeadsModel"]}, "zip", "masks head double"),
    "a model for tagging tokens": (NEW | {"architectures": ["GPT2ForTokenClassification"]}, "safetensors", "tags"),
    "a model without a head": (NEW | {"architectures": ["GPT2Model"]}, "safetensors", "bare"),
}  # fmt: skip

MODEL_TYPE = "config.json has model_type='{}', but gpt2x loads only 'gpt2'"
# name -> (config.json, message)
REJECTED = {
    "aubmindlab/aragpt2-mega": ({"model_type": "aragpt2", "auto_map": {"AutoConfig": "x.C"}},
                                MODEL_TYPE.format("aragpt2")),
    "microsoft/biogpt": ({"model_type": "biogpt"}, MODEL_TYPE.format("biogpt")),
    "EleutherAI/gpt-neo-125m": ({"model_type": "gpt_neo"}, MODEL_TYPE.format("gpt_neo")),
    "EleutherAI/gpt-j-6b": ({"model_type": "gptj"}, MODEL_TYPE.format("gptj")),
    "EleutherAI/pythia-70m": ({"model_type": "gpt_neox"}, MODEL_TYPE.format("gpt_neox")),
    "roneneldan/TinyStories-33M": ({"model_type": "gpt_neo"}, MODEL_TYPE.format("gpt_neo")),
    "facebook/opt-125m": ({"model_type": "opt"}, MODEL_TYPE.format("opt")),
    "bigcode/gpt_bigcode-santacoder": ({"model_type": "gpt_bigcode"}, MODEL_TYPE.format("gpt_bigcode")),
    "openai/imagegpt-small": ({"model_type": "imagegpt"}, MODEL_TYPE.format("imagegpt")),
    "openai-community/openai-gpt": ({"model_type": "openai-gpt", "afn": "gelu"}, MODEL_TYPE.format("openai-gpt")),
    "nlpconnect/vit-gpt2-image-captioning": ({"model_type": "vision-encoder-decoder"},
                                             MODEL_TYPE.format("vision-encoder-decoder")),
    "openai-community/roberta-base-openai-detector": ({"model_type": "roberta"}, MODEL_TYPE.format("roberta")),
    "a decoder of an encoder-decoder": ({"add_cross_attention": True, "is_decoder": True},
                                        "has add_cross_attention=True (the model attends to an encoder)"),
    "a model quantized by bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, "the weights are quantized"),
    "a classifier of several labels per text": (SENTIMENT | {"problem_type": "multi_label_classification"},
                                                "each label is scored apart"),
    "a regression of two numbers": (SENTIMENT | {"problem_type": "regression"}, "each label is a number"),
    "a GPT-2 with relu": ({"activation_function": "relu"}, "but gpt2x has only gelu_new"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers").utils.logging.disable_progress_bar()


def published_state(config, special):
    """Return the tensors as such a file has them."""
    import torch

    state = state_of(config)
    embedding, rows = state["transformer.wte.weight"], torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    del state["lm_head.weight"]
    if "head" in special:
        state["lm_head.weight"] = embedding
    if "masks" in special:
        for layer in range(config["n_layer"]):
            state[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(12, 12)).view(1, 1, 12, 12)
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    state |= {
        "score1": {"score.weight": rows[:1]},
        "score2": {"score.weight": rows},
        "v_head": {"v_head.summary.weight": rows[:1], "v_head.summary.bias": rows[0, :1]},
        "double": {"multiple_choice_head.summary.weight": rows[:1], "multiple_choice_head.summary.bias": rows[0, :1]},
        "tags": {"classifier.weight": rows, "classifier.bias": rows[:, 0]},
    }.get(special[-1], {})
    if "half" in special:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    return {name.removeprefix("transformer.") if "bare" in special else name: value for name, value in state.items()}


@pytest.mark.parametrize("name", LOADED)
def test_a_published_model_is_that_of_transformers(tmp_path, name):
    keys, form, special = LOADED[name]
    config = TINY | keys
    write_config(tmp_path, config)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 1024, "tokenizer_class": config.get("tokenizer_class", "GPT2Tokenizer")})
    )
    write_weights(tmp_path, published_state(config, special.split()), form)
    expected = by_transformers(tmp_path)
    assert expected is not None
    np.testing.assert_allclose(by_gpt2x(tmp_path), expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", REJECTED)
def test_a_model_that_gpt2x_does_not_compute_is_named(tmp_path, name):
    keys, message = REJECTED[name]
    write_config(tmp_path, TINY | keys)
    with pytest.raises(UserError) as caught:
        load_source(tmp_path)
    assert message in str(caught.value)


def test_a_custom_attention_under_the_name_gpt2_is_rejected(tmp_path):
    """bigcode/santacoder: model_type gpt2, one head of keys and values, and code of its own."""
    import torch

    keys = {"architectures": ["GPT2LMHeadCustomModel"], "attention_head_type": "multiquery"}
    write_config(tmp_path, TINY | keys | {"auto_map": {"AutoModelForCausalLM": "modeling.GPT2LMHeadCustomModel"}})
    state = {name: value for name, value in state_of(TINY).items() if "c_attn" not in name}
    state |= {f"transformer.h.{layer}.attn.q_attn.weight": torch.zeros(8, 8) for layer in range(2)}
    state |= {f"transformer.h.{layer}.attn.kv_attn.weight": torch.zeros(8, 8) for layer in range(2)}
    write_weights(tmp_path, state, "zip")
    with pytest.raises(UserError, match=r"missing: h\.0\.attn\.c_attn\.weight.*\n.*unexpected: h\.0\.attn\.q_attn"):
        load_source(tmp_path)


def test_docs_list_the_models():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    loaded, rejected = re.split(r"^## Rejected$", text, flags=re.MULTILINE)
    custom = {"bigcode/santacoder"}
    assert {name for name in LOADED if f"\n- {name}\n" not in loaded} == set()
    assert {name for name in {*REJECTED} | custom if f"\n- {name}: " not in rejected} == set()
