"""What a run leaves on disk: its directory, checkpoints, snapshots and records."""
