#!/usr/bin/env bash
# All that has to be seen on a GPU, in one lease of 15 minutes. See README.md.
#
#   [DEVICE=cuda|cpu] [PARTS="a b"] [ONLY=TEXT] benchmarks/gpu/check.sh [OUTPUT_DIR]
#
# Where benchmarks/gpu/wheels/ has wheels they are installed beside the python3 (PYTHON) that has torch; otherwise the
# environment is taken as it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(realpath -m "${1:-${OUT:-$root/runs/gpu-check}}")
mkdir -p "$out"
python=${PYTHON:-python3}

if compgen -G "$here/wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/wheels/*.whl
    # As make setup installs Open MPI, but not where its wheel expects to be.
    export PATH=$site/bin:$PATH OPAL_PREFIX=$site PMIX_PREFIX=$site PRTE_PREFIX=$site
    export LD_LIBRARY_PATH=$site/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} MPI4PY_LIBMPI=$site/lib/libmpi.so
    export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH}
fi
(cd "$root" && "$python" setup.py --quiet build_ext --inplace) ||
    echo "no kernel for updates on the host: they are made by torch, and not compared" >&2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONUNBUFFERED=1
exec "$python" "$here/check.py" --device "${DEVICE:-cuda}" --parts "${PARTS:-a b}" --only "${ONLY:-}" "$out"
