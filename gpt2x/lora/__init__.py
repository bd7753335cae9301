"""Low-rank adapters (Hu et al., arXiv:2106.09685): beside a model while they train, merged into it to use it."""
