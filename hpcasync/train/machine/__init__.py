"""What a run uses of its machine: devices, cores, threads."""
