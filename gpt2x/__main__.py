"""`python -m gpt2x COMMAND …` is `gpt2x COMMAND …`, and the three scripts; signals are received before all else."""

from __future__ import annotations

from gpt2x.runtime import interrupt, streams


def main() -> None:
    """Run `gpt2x COMMAND …` and end the process with its status."""
    run()


def run(name: str | None = None) -> None:
    """Run `NAME.py …`, or `gpt2x COMMAND …` without a name, and end the process with its status."""
    interrupt.catch()
    streams.set_up()
    try:
        from gpt2x.commands import cli
    except interrupt.Interrupted as interrupted:
        interrupt.leave(interrupted.number, str(interrupted))
    cli.script(name) if name else cli.main()


if __name__ == "__main__":
    main()
