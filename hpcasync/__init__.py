"""Asynchronous training over MPI one-sided communication. Importing this starts no MPI, Horovod or CUDA."""

__version__ = "0.1.0"
