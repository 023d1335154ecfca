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


# What torch says where it finds no memory: on the CPU in a RuntimeError among others.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "CUDA out of memory")


def as_user_error(error: BaseException) -> BaseException:
    """A UserError in place of one that says that there is not enough memory; any other as it is."""
    first_line = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in first_line for words in _NO_MEMORY)
    ):
        return UserError(
            f"there is not enough memory: {first_line or 'for an object'}; ask for less, or use a larger machine"
        )
    return error
