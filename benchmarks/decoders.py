"""Contestants that decode: each loads a Hugging Face directory and returns `run((prompts, new)) -> new ids of each`.

Greedy, EOS never ends a text. For new = 0, transformers' gives the logits after each prompt.
A contestant with weights of another type is one more function, or `partial` of one, in `CONTESTANTS`; only those in
`EXACT` must give transformers' tokens.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import llama

TRANSFORMERS = "transformers"
EXACT = ("gpt2x", TRANSFORMERS, "ctranslate2")  # fp32 throughout; llama.cpp keeps keys and values in fp16

Prompts = tuple[list[list[int]], int]


def gpt2x_decoder(options: argparse.Namespace, folder: Path, **config: object):
    """`Generator`, as `predict.py` uses it; `config` are further fields of GenerationConfig."""
    from train_steps import cpu_hardware

    from gpt2x.config import GenerationConfig
    from gpt2x.convert import load_source
    from gpt2x.data.tokenizer import Tokenizer
    from gpt2x.generate import Generator
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.runtime.device import set_up_device

    hardware = cpu_hardware()
    set_up_device(hardware)
    source = load_source(str(folder))
    net = GPT2(source.model, hardware)
    load_weights(net, source.weights())
    generator = Generator(net, source.model, hardware, Tokenizer.load(str(folder)))

    def run(given: Prompts) -> list[list[int]]:
        prompts, new = given
        chosen = GenerationConfig(max_new_tokens=new, temperature=0, eos_ids=[], batch_size=len(prompts), **config)
        return generator.generate_ids(prompts, chosen, seed=0)

    return run


def transformers_decoder(options: argparse.Namespace, folder: Path, dtype: str = "float32"):
    """`generate` by PyTorch eager, with its default attention (SDPA) and cache."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(options.threads)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    @torch.inference_mode()
    def run(given: Prompts) -> list:
        prompts, new = given
        ids = torch.tensor(prompts)
        if not new:
            return model(ids).logits[:, -1].tolist()
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new)
        return out[:, ids.shape[1] :].tolist()

    return run


def ctranslate2_decoder(options: argparse.Namespace, folder: Path, compute_type: str):
    """CTranslate2's `generate_batch` on what its own converter makes of the directory."""
    import ctranslate2
    from transformers import AutoTokenizer

    converted = folder / f"ctranslate2_{compute_type}"
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(converted), quantization=compute_type)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=options.threads
    )

    def run(given: Prompts) -> list[list[int]]:
        prompts, new = given
        found = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(ids) for ids in prompts], beam_size=1, sampling_topk=1,
            min_length=new, max_length=new, include_prompt_in_result=False,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in found]

    return run


CONTESTANTS = {
    "gpt2x": gpt2x_decoder,
    "gpt2x_bf16": partial(gpt2x_decoder, weights="bf16"),
    "gpt2x_int8": partial(gpt2x_decoder, weights="int8"),
    "gpt2x_int4": partial(gpt2x_decoder, weights="int4"),
    TRANSFORMERS: transformers_decoder,
    f"{TRANSFORMERS}_bf16": partial(transformers_decoder, dtype="bfloat16"),
    "ctranslate2": partial(ctranslate2_decoder, compute_type="float32"),
    "ctranslate2_int8": partial(ctranslate2_decoder, compute_type="int8"),
    "llama": partial(llama.llama_decoder, kind="F32"),
    "llama_bf16": partial(llama.llama_decoder, kind="BF16"),
    "llama_int8": partial(llama.llama_decoder, kind="Q8_0"),
}
NEEDS = {"ctranslate2": ("ctranslate2",), "llama": llama.PACKAGES}  # by the first word of a contestant's name


def missing() -> dict[str, list[str]]:
    """Contestants that cannot take part here -> the packages that are not installed."""
    found = {}
    for name in CONTESTANTS:
        absent = [package for package in NEEDS.get(name.partition("_")[0], ()) if find_spec(package) is None]
        if absent:
            found[name] = absent
    return found
