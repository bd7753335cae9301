"""Train a GPT-2 model: python train.py model=gpt2_small dataset=wikitext2 ...

All keys and options: python train.py --help
"""

from gpt2x.__main__ import run

# Hydra's tab completion completes a script that contains this word: @hydra.main
if __name__ == "__main__":
    run("train")
