"""Exit codes of a training job that scripts act on, beside 0 (done), 1 (an error) and 2 (a mistake of the user)."""

# Ended by a signal, with a checkpoint to go on from: start it again with --resume. slurm/common.sh knows the number.
PREEMPTED = 85
# Gradients or loss went out of bounds; the last good checkpoint is kept. Starting it again would do the same.
DIVERGED = 86
# A rank has died that the job cannot do without: what mpirun says of a rank that was killed.
RANK_LOST = 137
