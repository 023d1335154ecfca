"""What a process may lack when it starts: standard streams, a locale that can hold all text."""

import codecs
import locale
import os
import sys
from contextlib import suppress

_STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale has another encoding, and all that it starts.

    Text, names of files and messages are UTF-8 then, whatever the locale; in C and POSIX Python does so by itself.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_closed_streams() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed: the next file would get their number, and messages.

    What needs its standard input or output is refused then, as it cannot be read or written; the rest works.
    """
    for number, (name, mode, flags) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stand-in of a test
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def drop_unwritten_output() -> None:
    """What standard output has refused already: Python would try again at the end, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
