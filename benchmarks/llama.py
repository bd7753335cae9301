"""llama.cpp as a contestant: a Hugging Face directory as a GGUF file, decoded through llama.cpp's C interface.

`pip install llama-cpp-python gguf` builds llama.cpp for this processor from its source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

PACKAGES = ("llama_cpp", "gguf")
MATRICES = {  # Hugging Face's names, whose matrices are (in, out), and GGUF's, (out, in)
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
NORMS = {"ln_1": "attn_norm", "ln_2": "ffn_norm"}


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """Write GPT-2 of a Hugging Face directory as GGUF; `kind`, a GGMLQuantizationType, is that of all matrices."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = {
        name.removeprefix("transformer."): each for name, each in load_file(folder / "model.safetensors").items()
    }
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    tokens = json.loads((folder / "vocab.json").read_text("utf-8"))
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokens, key=tokens.__getitem__))
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    narrow = getattr(gguf.GGMLQuantizationType, kind)

    def add_matrix(name: str, values) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, narrow), raw_dtype=narrow)

    add_matrix("token_embd.weight", tensors["wte.weight"])
    writer.add_tensor("position_embd.weight", tensors["wpe.weight"])
    for part in ("weight", "bias"):
        writer.add_tensor(f"output_norm.{part}", tensors[f"ln_f.{part}"])
    for layer in range(config["n_layer"]):
        for theirs, name in NORMS.items():
            for part in ("weight", "bias"):
                writer.add_tensor(f"blk.{layer}.{name}.{part}", tensors[f"h.{layer}.{theirs}.{part}"])
        for theirs, name in MATRICES.items():
            add_matrix(f"blk.{layer}.{name}.weight", tensors[f"h.{layer}.{theirs}.weight"].T.copy())
            writer.add_tensor(f"blk.{layer}.{name}.bias", tensors[f"h.{layer}.{theirs}.bias"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_decoder(options: argparse.Namespace, folder: Path, kind: str):
    """llama.cpp's `llama_decode` on all sequences of a batch at once, greedy; keys and values in fp16, its default."""
    import llama_cpp as llama
    import numpy as np

    path = folder / f"{kind}.gguf"
    write_gguf(folder, path, kind)
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = kind != "Q8_0"  # llama.cpp 0.3.36 ends with a segmentation fault in its AMX products
    model = llama.llama_model_load_from_file(str(path).encode(), loading)
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def context(num_rows: int, length: int):
        settings = llama.llama_context_default_params()
        settings.n_ctx = num_rows * -(-length // 256) * 256
        settings.n_batch = settings.n_ubatch = max(512, num_rows * length)
        settings.n_seq_max = num_rows
        settings.n_threads = settings.n_threads_batch = options.threads
        return llama.llama_init_from_model(model, settings)

    def decode(made, rows: list[list[int]], first: int) -> list[int]:
        """Add tokens at place `first` of each row; the most likely token after each."""
        batch = llama.llama_batch_init(sum(map(len, rows)), 0, 1)
        wanted, at = [], 0
        for row, tokens in enumerate(rows):
            for place, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, first + place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = place == len(tokens) - 1
                at += 1
            wanted.append(at - 1)
        batch.n_tokens = at
        if llama.llama_decode(made, batch) != 0:
            raise RuntimeError("llama_decode failed")
        chosen = [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(made, i), (vocab_size,)).argmax()) for i in wanted
        ]
        llama.llama_batch_free(batch)
        return chosen

    contexts: dict[tuple[int, int], object] = {}

    def run(given: tuple[list[list[int]], int]) -> list[list[int]]:
        prompts, new = given
        shape = len(prompts), len(prompts[0]) + new
        if shape not in contexts:
            contexts[shape] = context(*shape)
        made = contexts[shape]
        llama.llama_memory_clear(llama.llama_get_memory(made), True)
        texts = [[token] for token in decode(made, prompts, 0)]
        for index in range(new - 1):
            chosen = decode(made, [text[-1:] for text in texts], shape[1] - new + index)
            for text, token in zip(texts, chosen, strict=True):
                text.append(token)
        return texts

    return run
