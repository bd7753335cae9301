"""Evaluate a trained model: python evaluate.py load=DIR dataset=wikitext2

All keys and options: python evaluate.py --help
"""

from gpt2x.build import RUNS
from gpt2x.cli import hydra_entry

if __name__ == "__main__":
    hydra_entry("evaluate", RUNS["evaluate"])
