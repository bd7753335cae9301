"""How a run ends that does not succeed (floor 0)."""


class UserError(ValueError):
    """Something the user can put right: the message names the key, the value and the fix.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """


class RunError(Exception):
    """A run failed, and why has been shown.

    Attributes:
        status: the exit status of the entry point: 2 after a user's mistake, else 1.
    """

    def __init__(self, message: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.status = status
