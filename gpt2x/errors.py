"""The one exception that stands for a user's mistake (floor 0)."""


class UserError(ValueError):
    """Something the user can put right: the message names the key, the value and the fix.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """
