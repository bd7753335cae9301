"""`python -m gpt2x COMMAND …` is `gpt2x COMMAND …`."""

from gpt2x.commands.cli import main

if __name__ == "__main__":
    main()
