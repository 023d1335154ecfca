"""Roles, shards and RMA windows: low-level MPI, knows no model."""
