"""Complete prompts: python predict.py load=DIR 'prompts=[\"Once upon a time\"]'

All keys and options: python predict.py --help
"""

from gpt2x.__main__ import run

# Hydra's tab completion completes a script that contains this word: @hydra.main
if __name__ == "__main__":
    run("predict")
