#!/usr/bin/env bash
# All that has to be seen on a GPU, in one lease of 15 minutes. See README.md.
#
#   [DEVICE=cuda|cpu] [PARTS="a b"] [ONLY=TEXT] [AT_ONCE=N] [COMMIT=NAME] [WORK=DIR] benchmarks/gpu/check.sh [OUTPUT_DIR]
#
# Where benchmarks/gpu/wheels/ has wheels they are installed beside the python3 (PYTHON) that has torch; otherwise the
# environment is taken as it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(realpath -m "${1:-${OUT:-$root/runs/gpu-check}}")
mkdir -p "$out"
python=${PYTHON:-python3}

paths=$root
if compgen -G "$here/wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    # Not with --target, which leaves out what Open MPI's wheel has for lib/.
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --ignore-installed \
        --no-warn-script-location --prefix "$site" "$here"/wheels/*.whl
    paths=$root:$(find "$site" -type d -name '*-packages' -print -quit)
    if libmpi=$(find "$site" -name 'libmpi.so.*' -print -quit) && [[ -n $libmpi ]]; then
        prefix=$(dirname "$(dirname "$libmpi")")
        # As make setup installs Open MPI, but not where its wheel expects to be.
        export PATH=$prefix/bin:$PATH OPAL_PREFIX=$prefix PMIX_PREFIX=$prefix PRTE_PREFIX=$prefix
        export LD_LIBRARY_PATH=$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} MPI4PY_LIBMPI=$libmpi
    fi
fi
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH}
# All that is missing at once: each try costs the start of a machine.
"$python" - torch triton numpy mpi4py pydantic click yaml rich psutil safetensors sentencepiece sacrebleu babel num2words \
    simpy pytest pytest_timeout xdist setuptools <<'PYTHON'
import importlib.util, shutil, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
missing += [name for name in ("mpirun", "gcc") if shutil.which(name) is None]
sys.exit(f"missing here: {', '.join(missing)}; see benchmarks/gpu/README.md" if missing else 0)
PYTHON
(cd "$root" && "$python" setup.py --quiet build_ext --inplace) ||
    echo "no kernel for updates on the host: they are made by torch, and not compared" >&2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONUNBUFFERED=1
export PYTHONFAULTHANDLER=1 # a crash says where, and so does what is ended because it hangs
exec "$python" "$here/check.py" --device "${DEVICE:-cuda}" --parts "${PARTS:-a b}" --only "${ONLY:-}" \
    ${AT_ONCE:+--at-once "$AT_ONCE"} --work "${WORK:-${TMPDIR:-/tmp}/hpcasync-gpu-check-$UID}" "$out"
