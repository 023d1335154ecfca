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


# What `Path` says of "~" where nobody has a home, and of links in a circle.
_PATH_ERRORS = ("Could not determine home directory", "Symlink loop")
# Of what has been closed, or whose terminal is gone.
_STREAM_ERRORS = (errno.EBADF, errno.EIO, errno.ENXIO)
# What torch says where it finds no memory: on the CPU in a RuntimeError among others.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "CUDA out of memory")


def as_user_error(error: BaseException) -> BaseException:
    """A UserError in place of one that says what the machine lacks or the file system refuses; any other as it is."""
    if isinstance(error, OSError) and (error.errno in _CURES or error.errno in _STREAM_ERRORS):
        if error.filename:
            return UserError(f"cannot use {error.filename}: {describe(error, 'name another')}")
        if error.errno in _STREAM_ERRORS:
            return UserError(f"standard input or output cannot be used: {describe(error, 'it is closed')}")
    if isinstance(error, UnicodeEncodeError):
        text = error.object[:60].encode(errors="backslashreplace").decode()
        return UserError(f"{text} cannot be written as {error.encoding}: give files and settings names in UTF-8")
    first_line = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError) and first_line.startswith(_PATH_ERRORS):
        return UserError(f"{first_line}: give the whole path, without links that lead back to themselves")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in first_line for words in _NO_MEMORY)
    ):
        return UserError(
            f"there is not enough memory: {first_line or 'for an object'}; ask for less, or use a larger machine"
        )
    return error


# What a message about a file says of what to do, by the error number: a guess would mislead where it contradicts it.
_CURES = {
    errno.EACCES: "its permissions forbid that: ask its owner, or name another",
    errno.EPERM: "its owner or its flags forbid that: ask its owner, or name another",
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


def describe(error: Exception, otherwise: str) -> str:
    """What the system or a library said, and what to do; `otherwise` where no error number tells of another cure."""
    if not isinstance(error, OSError):
        return f"{error}; {otherwise}"
    return f"{error.strerror or error}; {_CURES.get(error.errno or 0, otherwise)}"
