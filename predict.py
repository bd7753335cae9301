"""Complete prompts: python predict.py load=DIR 'prompts=[\"Once upon a time\"]'

All keys and options: python predict.py --help
"""

from gpt2x.commands.cli import script

# Hydra's tab completion completes a script that contains this word: @hydra.main
if __name__ == "__main__":
    script("predict")
