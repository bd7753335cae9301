"""The plan of `evaluate.py` and `predict.py`: of the model that `load=` describes, whose weights are not read."""

from __future__ import annotations

from gpt2x.config import CommonConfig, EvaluateConfig, ModelConfig, PredictConfig
from gpt2x.config.layout import fitted_to
from gpt2x.convert import load_source
from gpt2x.generate.lengths import bucket
from gpt2x.generate.prompts import read_prompts
from gpt2x.planner.inference import Decoding, InferencePlan, InferenceWork, Scoring, plan_inference
from gpt2x.planner.report import inference_table, inference_verdict
from gpt2x.runtime.console import console

BYTES_PER_TOKEN = 4  # of a prompt whose tokenizer is not read; English text has about four


def inference_plan(config: CommonConfig) -> InferencePlan:
    """Plan an evaluation or a prediction.

    Raises:
        UserError: the directory of `load=` is no model, or the prompts cannot be read.
    """
    load = str(config.load)
    model = fitted_to(load_source(load, verify=False).model, config.parallel, f"load={load}")
    return plan_inference(model, config.parallel, config.hardware, work_of(config, model), config.launch.num_nodes)


def work_of(config: CommonConfig, model: ModelConfig) -> InferenceWork:
    """Return what a process computes at the same time.

    Raises:
        UserError: the prompts cannot be read, or the draft is no model.
    """
    if isinstance(config, EvaluateConfig):
        return Scoring(config.evaluation.batch_size, config.evaluation.seq_len or model.max_seq_len)
    assert isinstance(config, PredictConfig)
    generation, prompts = config.generation, read_prompts(config)
    texts = min(generation.batch_size, -(-len(prompts) // config.parallel.data))
    longest = max(len((prompt.text + prompt.input).encode()) // BYTES_PER_TOKEN + 1 for prompt in prompts)
    prompt_len = bucket(longest, model.max_seq_len)
    if model.is_classifier:
        return Scoring(texts, prompt_len, "generation.batch_size")
    cache_len = bucket(longest + generation.max_new_tokens, model.max_seq_len)
    draft = load_source(generation.draft, verify=False).model if generation.draft else None
    return Decoding(texts, cache_len, prompt_len, generation.weights, generation.cache, draft)


def show_inference_plan(config: CommonConfig) -> None:
    """Print memory, speed and verdict of an evaluation or a prediction.

    Raises:
        UserError: as `inference_plan`.
    """
    plan = inference_plan(config)
    console.notice(inference_table(plan).text())
    for note in inference_verdict(plan):
        console.notice(note)
    if isinstance(config, PredictConfig):
        console.notice(f"A token of a prompt is assumed to have {BYTES_PER_TOKEN} bytes; the tokenizer is not read.")
