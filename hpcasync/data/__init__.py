"""Corpora: fetching, preparing, token files and batches: knows no MPI."""
