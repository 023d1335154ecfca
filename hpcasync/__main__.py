"""Entry point of the `hpcasync` command and of `python -m hpcasync`."""

import sys

from hpcasync.launch.failure import abort_on_thread_errors, end_process


def main() -> None:
    """Run the command line; an error that nothing catches ends all ranks of the job."""
    from hpcasync.cli.main import cli

    abort_on_thread_errors()
    try:
        result = cli.main(standalone_mode=False)
    except BaseException as error:
        end_process(error)
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
