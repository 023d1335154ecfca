# What your site needs: the one file to edit here.
#
# 1. For sbatch: `source slurm/site.sh` in the shell that submits, or in ~/.bashrc. sbatch takes SBATCH_* variables for
#    options (`man sbatch`, INPUT ENVIRONMENT VARIABLES). They win over the #SBATCH lines of the scripts; options on the
#    command line win over both. Where SLURM has defaults for you, nothing is needed.

# export SBATCH_ACCOUNT=my-project
# export SBATCH_PARTITION=batch
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=24:00:00

# 2. For the jobs: they call this before anything else. It must put `hpcasync` on PATH, and for an MPI of the site its
#    mpirun. An environment that is active where sbatch is called comes along, and is kept.
hpcasync_environment() {
    # module purge
    # module load gcc openmpi cuda
    if ! command -v hpcasync >/dev/null && [[ -f $HPCASYNC_ROOT/.venv/bin/activate ]]; then
        source "$HPCASYNC_ROOT/.venv/bin/activate"
    fi

    # Open MPI's one-sided component for InfiniBand and the like prints errors where there is no such hardware.
    if ! compgen -G "${HPCASYNC_FABRICS:-/sys/class/infiniband}/*" >/dev/null; then
        export OMPI_MCA_osc="${OMPI_MCA_osc:-^ucx}"
    fi
}
