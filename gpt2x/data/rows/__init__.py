"""How documents and examples become rows of tokens."""
