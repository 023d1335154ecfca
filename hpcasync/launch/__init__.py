"""Starting and ending MPI jobs: the mpirun line, its processes, how a rank reports a failure; starts no MPI itself."""
