"""Kinds of trained tokenizers: one file per kind, named as `tokenizer.kind`.

Each defines `TRAIN`, a function of (texts, `TokenizerConfig`) that returns a `Tokenizer`. To add a kind, write such a
file and a YAML file in conf/tokenizer.
"""
