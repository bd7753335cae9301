"""Perplexity protocols."""
