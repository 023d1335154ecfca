"""Entry point of the `hpcasync` command and of `python -m hpcasync`."""

import atexit
import gc
import sys

from hpcasync.deaths import lifeline
from hpcasync.launch.failure import abort_on_thread_errors, end_process
from hpcasync.launch.ranks import rank_from_environment
from hpcasync.launch.standard_input import take_input
from hpcasync.launch.surroundings import open_closed_streams, use_utf8


def main() -> None:
    """Run the command line; an error that nothing catches ends all ranks of the job."""
    # The interpreter's last collections would look at all that torch has loaded: half a second of every command.
    atexit.register(gc.freeze)
    use_utf8()
    open_closed_streams()
    take_input()
    abort_on_thread_errors()
    try:
        rank = rank_from_environment()
        lifeline.hold(rank.world_rank if rank else 0)
        from hpcasync.cli.main import cli

        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        end_process(error)
    exit_code = result if isinstance(result, int) else 0
    lifeline.leave(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
