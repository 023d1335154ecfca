"""What mpirun starts for a rank that is a fork: `forked_rank.py SOCKET ARGUMENTS`, for `python ARGUMENTS`.

It hands on what it was started with, and signals; it ends as the rank does, and the rank with it.
"""

import json
import os
import resource
import signal
import socket
import sys

# mpirun stops a rank, tells it to go on and kills it by itself.
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, arguments: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    request = {
        "arguments": arguments,
        "cwd": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "cores": list(os.sched_getaffinity(0)),
        "umask": os.umask(0o22),
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"\n"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    for descriptor in (0, 1, 2):
        os.close(descriptor)  # what the rank has closed is closed
    answers = connection.makefile()
    pid = int(answers.readline())
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    exit_code = os.waitstatus_to_exitcode(int(answers.readline()))
    if exit_code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-exit_code])
        if -exit_code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


main(sys.argv[1], sys.argv[2:])
