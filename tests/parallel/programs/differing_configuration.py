"""`hpcasync ARGUMENTS`, with another seed on rank 1."""

import sys

from hpcasync.__main__ import main
from hpcasync.launch.ranks import rank_from_environment

if __name__ == "__main__":
    place = rank_from_environment()
    assert place is not None
    if place.world_rank == 1:
        sys.argv.append("seed=7")
    main()
