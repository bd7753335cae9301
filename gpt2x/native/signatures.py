"""The signature of every C++ operator as Python calls it: operands by name, in order, with type and sizes.

The same texts stand in gpt2x/native/src at each `GPT2X_OP`; `gpt2x.native.library` compares them when it opens the
library. gpt2x/native/src/op.hpp has the grammar.

Legend: B batch, T tokens, R rows, D hidden, N heads (in linears: outputs), K inputs, V table rows or vocabulary,
P table rows with padding, M new tokens of all rows, F feed-forward.
"""

from __future__ import annotations

MASK = "starts int32, key int32, rows int32, settings int32 (8)"
HEAD = "hidden float32 (R, D), table float32 (V, D), labels int32 (R), num_columns int32 (1)"


def decoder_block(dtype: str) -> str:
    """Return the signature of a block whose four matrices have a type."""
    return (
        "x float32 (M, D), positions int32, slots int32 (B), ln_1_weight float32 (D), ln_1_bias float32 (D), "
        f"attn {dtype}, attn_scales float32, attn_bias float32, "
        f"proj {dtype}, proj_scales float32, proj_bias float32 (D), "
        "ln_2_weight float32 (D), ln_2_bias float32 (D), "
        f"fc {dtype}, fc_scales float32, fc_bias float32 (F), "
        f"out {dtype}, out_scales float32, out_bias float32 (D), "
        "keys float32, values float32, settings int32 (3), eps float32 (1) -> y float32 (M, D)"
    )


def decoder_head(dtype: str) -> str:
    """Return the signature of a head whose table has a type."""
    return (
        "x float32 (M, D), ln_f_weight float32 (D), ln_f_bias float32 (D), "
        f"table {dtype} (P, D), table_scales float32, eps float32 (1) -> logits float32 (M, V)"
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
    "decoder_block_fp32": decoder_block("float32"),
    "decoder_block_bf16": decoder_block("int16"),
    "decoder_block_int8": decoder_block("int8"),
    "decoder_head_fp32": decoder_head("float32"),
    "decoder_head_bf16": decoder_head("int16"),
    "decoder_head_int8": decoder_head("int8"),
}
