"""Complete prompts: python predict.py load=DIR 'prompts=[\"Once upon a time\"]'

All keys and options: python predict.py --help
"""

from gpt2x.commands.cli import script

if __name__ == "__main__":
    script("predict")
