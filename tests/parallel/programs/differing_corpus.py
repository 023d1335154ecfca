"""`hpcasync ARGUMENTS`, in another working directory on rank 1: the same relative paths are other files there."""

import os
import sys

from hpcasync.__main__ import main
from hpcasync.launch.ranks import rank_from_environment

if __name__ == "__main__":
    place = rank_from_environment()
    assert place is not None
    other = sys.argv.pop(1)
    if place.world_rank == 1:
        os.chdir(other)
    main()
