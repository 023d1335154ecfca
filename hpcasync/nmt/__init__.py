"""Translation models, loss, search and scoring: knows no MPI."""
