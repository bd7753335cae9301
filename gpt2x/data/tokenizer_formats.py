"""What is read of a tokenizer's files: the lists from which `gpt2x.data.tokenizer_reading` decides."""

from __future__ import annotations

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.data.added_tokens import TOKEN_KEYS
from gpt2x.data.tokenizer_classes import CLASSES, GENERIC, OTHER_CLASSES

KEPT = (
    "model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names", "errors",
    "clean_up_tokenization_spaces",
)  # fmt: skip
CONFIG = Format(
    "Tokenizer: tokenizer_config.json",
    "How transformers' AutoTokenizer is set up. gpt2x encodes as `tokenizer(text, add_special_tokens=False)`.",
    (
        Entry("tokenizer_class", Use.READ, f"{', '.join(CLASSES)}; any other name that transformers lacks, and "
              f"{GENERIC}: tokenizer.json as it is. If absent: config.json's tokenizer_class, else its model_type."),
        Entry("other values of tokenizer_class", Use.REJECTED, f"{', '.join(sorted(OTHER_CLASSES))}: their rules are "
              f"code of transformers; {GENERIC} takes their tokenizer.json as it is."),
        Entry("add_prefix_space", Use.READ, f"by the classes of byte-level BPE; not by {GENERIC}."),
        *entries(Use.READ, ("do_lower_case", "strip_accents", "tokenize_chinese_chars"), "by BertTokenizer."),
        *TOKEN_KEYS,
        Entry("split_special_tokens", Use.READ, "true: a special token that a text spells out is split."),
        *entries(Use.READ, ("add_bos_token", "add_eos_token"),
                 "kept for other tools; gpt2x adds nothing at either end of a text."),
        *entries(Use.IGNORED, KEPT, "kept when the tokenizer is saved."),
        *entries(Use.IGNORED, ("max_len", "max_length", "pad_to_multiple_of", "pad_token_type_id", "stride",
                               "trim_offsets", "truncation_strategy", "chat_control_tokens", "response_template"),
                 "no part of encoding a text."),
        *entries(Use.IGNORED, ("auto_map", "backend", "files_loaded", "init_inputs", "is_local", "legacy",
                               "local_files_only", "name_or_path", "processor_class", "special_tokens_map_file",
                               "tokenizer_file", "use_fast"), "where the files came from."),
        Entry("fast_tokenizer_files", Use.REJECTED, "a file other than tokenizer.json; rename it."),
        *entries(Use.REJECTED, ("vocab", "merges", "gguf_file", "tokenizer_object"),
                 "a vocabulary within the configuration; save it as tokenizer.json."),
    ),
    "passed to the class by transformers, and without effect in the classes above.",
)  # fmt: skip
FILES = Format(
    "Tokenizer: files of the directory",
    "In the order in which they are looked for; `tokenizers` and transformers' AutoTokenizer define them.",
    (
        Entry("tokenizer.json", Use.READ, "BPE, WordPiece, WordLevel and Unigram, with any pre-tokenizer; also without "
              "other files. Truncation and padding are switched off, BPE dropout too."),
        Entry("vocab.json", Use.READ, "with merges.txt: the classes of byte-level BPE."),
        Entry("merges.txt", Use.READ, "with vocab.json."),
        Entry("vocab.txt", Use.READ, "BertTokenizer, if tokenizer_class names it."),
        Entry("tokenizer_config.json", Use.READ),
        Entry("special_tokens_map.json", Use.READ, "unless tokenizer_config.json has added_tokens_decoder."),
        Entry("added_tokens.json", Use.READ, "unless tokenizer_config.json has added_tokens_decoder."),
        Entry("config.json", Use.READ, "tokenizer_class, model_type, and eos_token_id if no other file names EOS."),
        *entries(Use.IGNORED, ("chat_template.jinja",), "copied by `gpt2x convert`."),
        *entries(Use.REJECTED, ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm"),
                 "a SentencePiece model."),
        Entry("tiktoken.model", Use.REJECTED, "a vocabulary of tiktoken."),
        Entry("tekken.json", Use.REJECTED, "a vocabulary of Mistral."),
        *entries(Use.REJECTED, ("encoder.json", "vocab.bpe"), "OpenAI's names of vocab.json and merges.txt; rename."),
        *entries(Use.REJECTED, ("bpe.codes", "vocab.pkl", "dict.txt"), "a vocabulary of fairseq or subword-nmt."),
    ),
    "no file of a tokenizer.",
)  # fmt: skip
