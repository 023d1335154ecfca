"""A worker's loop: batches, a step, what a mode exchanges."""
