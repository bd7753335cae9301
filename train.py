"""Train a GPT-2 model: python train.py model=gpt2_small dataset=wikitext2 ...

All keys and options: python train.py --help
"""

from gpt2x.commands.entry import RUNS
from gpt2x.commands.hydra_entry import hydra_entry

if __name__ == "__main__":
    hydra_entry("train", RUNS["train"])
