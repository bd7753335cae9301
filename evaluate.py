"""Evaluate a trained model: python evaluate.py load=DIR dataset=wikitext2

Several at once, and their comparison: python evaluate.py -m load=A,B dataset=C,D
All keys and options: python evaluate.py --help
"""

from gpt2x.__main__ import run

# Hydra's tab completion completes a script that contains this word: @hydra.main
if __name__ == "__main__":
    run("evaluate")
