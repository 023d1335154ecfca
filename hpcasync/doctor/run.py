"""All checks, in the order in which they are shown."""

from collections.abc import Callable

from hpcasync.doctor.check import Check
from hpcasync.doctor.machine import machine_checks
from hpcasync.doctor.mpi import check_horovod, check_launcher, check_library, check_nodes, check_rma, has_two_nodes
from hpcasync.doctor.packages import check_cuda, check_torch, package_checks


def run_checks(announce: Callable[[str], None]) -> list[Check]:
    """Run all checks; `announce` is told what is being looked at, as some take seconds."""
    announce("machine")
    checks = machine_checks()
    announce("torch")
    checks += [check_torch(), check_cuda(), *package_checks()]
    announce("MPI, on two ranks")
    library_check, library = check_library()
    checks.append(library_check)
    launcher_check, launcher = check_launcher()
    checks.append(launcher_check)
    if library is not None:
        checks += check_rma(launcher)
    if launcher is not None and has_two_nodes():
        announce("MPI, between two nodes")
        checks.append(check_nodes(launcher))
    announce("Horovod, on two ranks")
    checks.append(check_horovod(launcher))
    return checks
