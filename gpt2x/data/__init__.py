"""Text to blocks: tokenizers, corpora, MindRecord files and the order of batches (docs/data.md)."""
