"""Many runs from one file: what is to be compared as axes, run here or as a SLURM array, resumable, with a report."""
