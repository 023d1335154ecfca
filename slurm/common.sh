# What the scripts of this directory share. A site changes site.sh, not this.

HPCASYNC_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "hpcasync: error: $*" >&2
    exit 2
}

# Site's modules and environments first: theirs is code that `set -eu` would end.
prepare_environment() {
    source "${HPCASYNC_SITE:-$HPCASYNC_ROOT/slurm/site.sh}"
    hpcasync_environment
    set -eu
    command -v hpcasync >/dev/null ||
        fail "hpcasync is not on PATH of the job: say in slurm/site.sh how to get there, or run \`make setup\`"
    # What a log shows should be what has happened.
    export PYTHONUNBUFFERED=1
    # sbatch --export=NONE, a default of some sites, is about the user's shell; the steps of this job need what was set
    # here.
    unset SLURM_EXPORT_ENV
    echo "hpcasync: $(date +%FT%T%z), job $SLURM_JOB_ID (${SLURM_JOB_NAME-}) on ${SLURM_JOB_NODELIST-}," \
        "start number $((${SLURM_RESTART_COUNT:-0} + 1))" >&2
}

# train_job sync|async|any CONFIG [key=value …] [--resume | --overwrite] [--resume-from=RUN_DIR]
# One `hpcasync train` on all nodes of the job.
train_job() {
    local kind=$1 word plan settings=() flags=() from=()
    shift
    for word in "$@"; do
        case $word in
            --resume-from=*) from=("$word") ;; # also after a requeue: what the run has itself comes first
            --*) flags+=("$word") ;;
            *) settings+=("$word") ;;
        esac
    done
    ((${#settings[@]})) || fail "usage: sbatch slurm/NAME.sbatch CONFIG.yaml [key=value …]"
    [[ $kind != sync ]] || settings=("${settings[0]}" mode=sync "${settings[@]:1}")
    # Sets run_dir, started, step, overrides and flags; see hpcasync/slurm/plan.py, step.py and requeue.py.
    plan=$(python3 -m hpcasync.slurm "$kind" --scripts "$HPCASYNC_ROOT/slurm" --flags="${flags[*]}" "${settings[@]}") || exit
    eval "$plan"
    remove_old_marks
    before=$(newest_checkpoint)
    pass_signals "${step[@]}" train "${settings[@]}" "${overrides[@]}" "${flags[@]}" "${from[@]}"
}

# run_each COMMAND…: each a line of `hpcasync` as a shell reads it, one after the other until one fails.
run_each() {
    local line
    for line in "$@"; do
        eval "hpcasync $line"
    done
}

newest_checkpoint() {
    compgen -G "$run_dir/checkpoints/u*[0-9]/state.json" | sort | tail -n 1
}

# Of jobs that were cancelled, which leave theirs behind.
remove_old_marks() {
    local mark state
    for mark in "${started%"$SLURM_JOB_ID"}"[0-9]*; do
        [[ -e $mark && $mark != "$started" ]] || continue
        state=$(squeue --noheader --format %T --jobs "${mark##*.job-}" 2>&1) || true
        [[ -n $state && $state != *"Invalid job id"* ]] || rm -f "$mark"
    done
}

# Exit code of training that a signal made save and end; see hpcasync/exit_codes.py.
EXIT_PREEMPTED=85

# Runs a command and hands USR1, the warning before preemption and time limit (--signal=B:USR1@SECONDS), on to it; bash
# alone would see it only when the command has ended. Where the command has saved and ended, the job goes back into the
# queue, and from there on: see hpcasync/slurm/requeue.py.
pass_signals() {
    local child code is_interrupted=1 is_warned=0
    "$@" &
    child=$!
    trap 'is_interrupted=1; is_warned=1; kill -USR1 "$child" 2>/dev/null' USR1
    while ((is_interrupted)); do
        is_interrupted=0
        wait "$child" && code=0 || code=$?
    done
    trap - USR1
    # 138: it had not got so far as to note the signal, and died of it; 250: nor Open MPI's mpirun as to hand it on.
    if ((code == EXIT_PREEMPTED || (is_warned && (code == 138 || code == 250)))) && has_got_forward; then
        echo "hpcasync: job $SLURM_JOB_ID goes back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID" && return "$code"
        echo "hpcasync: error: it cannot be requeued: submit it again with --resume" >&2
    fi
    rm -f "${started-}"
    return "$code"
}

# Whether to start the job again: not where two starts in a row have brought no new checkpoint. The time limit is then so
# near the warning that it would be queued for ever.
has_got_forward() {
    local fruitless=0
    [[ -n ${started-} ]] || return 0
    if [[ $(newest_checkpoint) == "$before" ]]; then
        fruitless=$(($(cat "$started" 2>/dev/null || true) + 1))
    fi
    # In place, with the time of the first start.
    touch -r "$started" "$started.time" && echo "$fruitless" >"$started" && touch -r "$started.time" "$started"
    rm -f "$started.time"
    if ((fruitless >= 2)); then
        echo "hpcasync: error: two starts of job $SLURM_JOB_ID have brought no new checkpoint: it is not queued again." \
            "Give it more --time, or a later warning (--signal=B:USR1@SECONDS); train with --resume goes on" >&2
        return 1
    fi
}
