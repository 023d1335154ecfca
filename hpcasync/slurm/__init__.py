"""What hpcasync knows of SLURM: the allocation it runs in, and how a training job fills it."""
