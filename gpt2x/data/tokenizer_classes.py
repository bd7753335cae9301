"""What transformers' tokenizer classes make of a vocabulary: the classes that gpt2x builds, and those that it rejects.

`AutoTokenizer` of transformers 5 takes a tokenizer.json as it is only for its generic class. A class that stands in
`CLASSES` takes vocabulary and merges from the files, and brings its own normalizer, pre-tokenizer and special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

GENERIC = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is; so do classes that transformers does not have
GPT2 = "GPT2Tokenizer"
DEFAULT_EOS = "<|endoftext|>"
GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), DEFAULT_EOS)
BERT_TOKENS = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
ROBERTA_TOKENS = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerClass:
    """One class of transformers.

    Attributes:
        model: type of its `model` in tokenizer.json.
        special_tokens: role -> text of the tokens that it names if no file does.
        build: returns the tokenizer, from the model and tokenizer_config.json.
    """

    model: str
    special_tokens: Mapping[str, str]
    build: Callable[[Any, Mapping[str, Any]], tokenizers.Tokenizer]


def byte_level(model: models.BPE, *, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """Return `model` with GPT-2's pre-tokenization, decoding and offsets."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _gpt2(model: models.BPE, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return byte_level(model, add_prefix_space=bool(config.get("add_prefix_space", False)))


def _gpt_neox(model: models.BPE, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = _gpt2(model, config)
    backend.normalizer = normalizers.NFC()
    return backend


def _bert(model: models.WordPiece, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


CLASSES = {
    GPT2: TokenizerClass("BPE", GPT2_TOKENS, _gpt2),
    "CodeGenTokenizer": TokenizerClass("BPE", GPT2_TOKENS, _gpt2),
    "GPTNeoXTokenizer": TokenizerClass("BPE", GPT2_TOKENS | {"pad_token": "<|padding|>"}, _gpt_neox),
    "RobertaTokenizer": TokenizerClass("BPE", ROBERTA_TOKENS, _gpt2),
    "BertTokenizer": TokenizerClass("WordPiece", BERT_TOKENS, _bert),
}
CLASS_OF_MODEL_TYPE = {
    "gpt2": GPT2,
    "codegen": "CodeGenTokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer",
}

# classes of transformers 5.24 that split texts by rules or files of their own
NAMES = """
    AlbertTokenizer BarthezTokenizer BartphoTokenizer BertGenerationTokenizer BertJapaneseTokenizer BertweetTokenizer
    BigBirdTokenizer BioGptTokenizer BlenderbotSmallTokenizer BlenderbotTokenizer ByT5Tokenizer CLIPTokenizer
    CTRLTokenizer CamembertTokenizer CanineTokenizer ClvpTokenizer CodeLlamaTokenizer CohereTokenizer ConvBertTokenizer
    CpmAntTokenizer CpmTokenizer DPRContextEncoderTokenizer DPRQuestionEncoderTokenizer DPRReaderTokenizer
    DebertaTokenizer DebertaV2Tokenizer DiaTokenizer DistilBertTokenizer EsmTokenizer EsmcTokenizer FNetTokenizer
    FSMTTokenizer FastSpeech2ConformerTokenizer FlaubertTokenizer FunnelTokenizer GPTNeoXJapaneseTokenizer
    GPTSw3Tokenizer GemmaTokenizer HerbertTokenizer LasrTokenizer LayoutLMv2Tokenizer LayoutLMv3Tokenizer
    LayoutXLMTokenizer LlamaTokenizer LukeTokenizer M2M100Tokenizer MBart50Tokenizer MBartTokenizer MLukeTokenizer
    MPNetTokenizer MarianTokenizer MarkupLMTokenizer MgpstrTokenizer MyT5Tokenizer NllbTokenizer NougatTokenizer
    OpenAIGPTTokenizer PLBartTokenizer PegasusTokenizer PerceiverTokenizer PhobertTokenizer Pop2PianoTokenizer
    ProphetNetTokenizer Qwen2Tokenizer Qwen3_5Tokenizer RagTokenizer ReformerTokenizer RemBertTokenizer RoCBertTokenizer
    RoFormerTokenizer SeamlessM4TTokenizer Siglip2Tokenizer SiglipTokenizer Speech2TextTokenizer SpeechT5Tokenizer
    SplinterTokenizer T5Tokenizer TapasTokenizer Tipsv2Tokenizer UdopTokenizer VideoPrismTokenizer VitsTokenizer
    Wav2Vec2CTCTokenizer Wav2Vec2PhonemeCTCTokenizer WhisperTokenizer XGLMTokenizer XLMRobertaTokenizer XLMTokenizer
    XLNetTokenizer
"""
OTHER_CLASSES = frozenset(NAMES.split())
