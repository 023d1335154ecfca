"""The one exception for what a user can cause and cure."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment.

    The message says what is wrong, where, and what to do. It is shown without a traceback, once per job, and the job
    ends with `exit_code`.

    Args:
        message: for the user.
        everywhere: every rank of the job raises it, so that one of them may speak for all; otherwise the rank that
            raised it speaks and ends the others.
    """

    exit_code = 2

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere
