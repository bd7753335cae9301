"""Complete prompts: python predict.py load=DIR 'prompts=[\"Once upon a time\"]'

All keys and options: python predict.py --help
"""

from gpt2x.commands.entry import RUNS
from gpt2x.commands.hydra_entry import hydra_entry

if __name__ == "__main__":
    hydra_entry("predict", RUNS["predict"])
