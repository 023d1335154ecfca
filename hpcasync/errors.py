"""The one exception for what a user can cause and cure, and the words for what a file system refuses."""

import errno


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


# What a message about a file says of what to do, by the error number: a guess would mislead where it contradicts it.
_CURES = {
    errno.EACCES: "its permissions forbid it: ask the owner, or name a place of your own",
    errno.EPERM: "its owner or its flags forbid it: ask the owner, or name a place of your own",
    errno.EROFS: "name a place that may be written",
    errno.ENOSPC: "make room, or name a place with room",
    errno.EDQUOT: "your quota is used up: remove something, or name another place",
    errno.EFBIG: "it would be larger than files may be here (ulimit -f)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open: try again later",
    errno.ENOMEM: "the machine is out of memory: try again where there is more",
    errno.EIO: "the disk or file server fails: try again, or tell its administrator",
    errno.ESTALE: "the file server has lost it: try again",
    errno.ETIMEDOUT: "the file server does not answer: try again later",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a symbolic link leads back to itself: mend it",
}


def describe(error: OSError, otherwise: str) -> str:
    """What the system said, and what to do; `otherwise` is the cure where the error number does not tell one."""
    return f"{error.strerror or error}; {_CURES.get(error.errno or 0, otherwise)}"
