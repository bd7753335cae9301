"""The signature of every C++ operator as Python calls it: operands by name, in order, with type and sizes.

The same texts stand in gpt2x/native/src at each `GPT2X_OP`; `gpt2x.native.library` compares them when it opens the
library. gpt2x/native/src/op.hpp has the grammar.

Legend: B batch, T tokens, R rows, D hidden, N heads (in linears: outputs), K inputs, V table rows or vocabulary,
P table rows with padding, S positions, L new tokens of a row whose next token is computed, F feed-forward.
"""

from __future__ import annotations

MASK = "starts int32, key int32, rows int32, settings int32 (8)"
HEAD = "hidden float32 (R, D), table float32 (V, D), labels int32 (R), num_columns int32 (1)"


LAYER = (
    "ln_1_weight float32 (D), ln_1_bias float32 (D), attn {0}, attn_scales any, attn_bias float32, "
    "proj {0}, proj_scales any, proj_bias float32 (D), ln_2_weight float32 (D), ln_2_bias float32 (D), "
    "fc {0}, fc_scales any, fc_bias float32 (F), out {0}, out_scales any, out_bias float32 (D), keys any, values any"
)
WEIGHTS = {"fp32": "float32", "bf16": "int16", "int8": "int8", "int4": "int8"}  # kind -> type of its tensors


def decoder(kind: str, output: str) -> str:
    """Return the signature of the whole model on new tokens, with weights of a kind."""
    dtype = WEIGHTS[kind]
    return (
        "ids int32 (B, T), positions int32 (B, T), columns int32 (B, L), tokens float32 (P, D), places float32 (S, D), "
        f"ln_f_weight float32 (D), ln_f_bias float32 (D), table {dtype}, table_scales any, settings int32 (5), "
        f"eps float32 (1), each {LAYER.format(dtype)} -> {output}"
    )


PRODUCTS = {  # each also with the suffix _bf16, which rounds the operands of its matrix products
    "linear": "x float32 (R, K), weight float32 (K, N) -> y float32 (R, N)",
    "linear_bias": "x float32 (R, K), weight float32 (K, N), bias float32 (N) -> y float32 (R, N)",
    "linear_dx": "dy float32 (R, N), weight float32 (K, N) -> dx float32 (R, K)",
    "linear_dw": "x float32 (R, K), dy float32 (R, N) -> dweight float32 (K, N)",
    "head_nll": f"{HEAD} -> nll float32 (R)",
    "head_loss": f"{HEAD}, weights float32 (R) -> nll float32 (R), dhidden float32 (R, D), dtable float32 (V, D)",
    "head_loss_frozen": f"{HEAD}, weights float32 (R) -> nll float32 (R), dhidden float32 (R, D)",
}
SIGNATURES = {
    **PRODUCTS,
    **{f"{name}_bf16": signature for name, signature in PRODUCTS.items()},
    "linear_db": "dy float32 (R, N) -> dbias float32 (N)",
    "layer_norm": "x float32 (R, D), weight float32 (D), bias float32 (D), eps float32 (1) "
    "-> y float32 (R, D), mean float32 (R), scale float32 (R)",
    "layer_norm_grad": "dy float32 (R, D), x float32 (R, D), weight float32 (D), mean float32 (R), scale float32 (R) "
    "-> dx float32 (R, D), dweight float32 (D), dbias float32 (D)",
    "gelu_new": "x float32 -> y float32",
    "gelu_new_grad": "x float32, dy float32 -> dx float32",
    "fast_gelu": "x float32 -> y float32",
    "fast_gelu_grad": "x float32, dy float32 -> dx float32",
    "dropout": "x float32, key int32, rows int32, settings int32 (4) -> y float32",
    "attention": f"qkv float32 (B, T, 3D), {MASK} -> out float32 (B, T, D), lse float32 (B, N, T)",
    "attention_grad": "dout float32 (B, T, D), qkv float32 (B, T, 3D), out float32 (B, T, D), lse float32 (B, N, T), "
    f"{MASK} -> dqkv float32 (B, T, 3D)",
    "scale_in_place": "values float32, factor float32 (1) -> done float32 (1)",
    "square_sum": "x float32 -> sum float32 (1)",
    "adamw": "parameter float32, mean float32, square float32, gradient float32, factor float32, finite bool, "
    "rate float32, eps float32, decay_factor float32, betas float32 (2) -> done float32 (1)",
    **{f"decode_{kind}": decoder(kind, "logits float32 (B, L, V)") for kind in WEIGHTS},
    **{f"decode_likeliest_{kind}": decoder(kind, "chosen int32 (B, L)") for kind in WEIGHTS},
    "fill_slot": "slot int32 (1), settings int32 (5), each from any, to any -> done float32 (1)",
}
