"""What mpirun starts for a rank that is a fork: `python ARGUMENTS`, where `python` is a copy of this file.

It hands on what it was started with, and signals; it ends as the rank does, and the rank with it. The socket of
`fork_ranks.py`, named by the host, lies beside it, and a file named by its process, which says that of the rank.
"""

import json
import os
import resource
import signal
import socket
import sys

# mpirun stops a rank, tells it to go on and kills it by itself.
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(path: str, arguments: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    request = {
        "python": path,
        "arguments": arguments,
        "cwd": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "cores": list(os.sched_getaffinity(0)),
        "umask": os.umask(0o22),
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{path}.{os.uname().nodename[:16]}")
    socket.send_fds(connection, [b"\n"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    for descriptor in (0, 1, 2):
        os.close(descriptor)  # what the rank has closed is closed
    answers = connection.makefile()
    pid = int(answers.readline())
    named = f"{path}.{os.getpid()}"
    with open(f"{named}.partial", "w") as file:  # noqa: PTH123
        file.write(str(pid))
    os.rename(f"{named}.partial", named)  # noqa: PTH104
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    exit_code = os.waitstatus_to_exitcode(int(answers.readline()))
    os.unlink(named)  # noqa: PTH108
    if exit_code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-exit_code])
        if -exit_code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


main(sys.argv[0], sys.argv[1:])
