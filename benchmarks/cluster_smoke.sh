#!/usr/bin/env bash
# A study on a SLURM cluster of two nodes that is disturbed three times, beside the same study on one machine:
#     benchmarks/cluster_smoke.sh [FOLDER]          some minutes, as root, after `make setup cluster`
# The cluster is made for it on this machine (Debian's slurmctld slurmd slurm-client munge), on loopback, without systemd;
# all its files and both workspaces are in FOLDER, and at the end only processes of this cluster are stopped. No cgroups:
# what a job may use is counted, not enforced.
set -euo pipefail
cd "$(dirname "$0")/.."
D=$(realpath -m "${1:-/tmp/boom-cluster}")
PORT=${PORT:-27817}
SNAKEMAKE=${SNAKEMAKE:-.venv-cluster/bin/snakemake}
PROFILE=$D/cluster-smoke.yaml
HOST=$(hostname -s)

say() { printf '%s %s\n' "$(date +%T)" "$*"; }

start_cluster() {
    command -v slurmctld slurmd munged >/dev/null ||
        { echo "install slurmctld slurmd slurm-client munge (apt-get), then run this again" >&2; exit 2; }
    mkdir -p "$D"/{state,log,run,bin,spool}
    (umask 077; head -c 128 /dev/urandom >"$D/munge.key")
    cat >"$D/slurm.conf" <<CONF
ClusterName=boom
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$D/run/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
SlurmdTimeout=20
KillWait=20
MinJobAge=86400
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    # A job of Snakemake drops SLURM_CONF before it calls srun; where the file is /etc/slurm/slurm.conf that is no matter.
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$D/slurm.conf" "$(command -v srun)" >"$D/bin/srun"
    chmod 755 "$D/bin/srun"
    export SLURM_CONF=$D/slurm.conf PATH=$D/bin:$PATH
    munged --force --key-file="$D/munge.key" --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" \
        --log-file="$D/log/munged.log" --seed-file="$D/munge.seed" 2>>"$D/log/munged.err"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N n1
    slurmd -f "$SLURM_CONF" -N n2
    for _ in $(seq 120); do
        [ "$(sinfo -h -N -o %T 2>/dev/null | grep -cx idle)" = 2 ] && return
        sleep 0.5
    done
    tail -n 5 "$D"/log/*.log >&2
    exit 1
}

stop_cluster() {
    for pid in ${RUN:-} ${LOCAL:-}; do kill "$pid" 2>/dev/null || true; done
    for job in $(timeout 20 squeue -h -o %A 2>/dev/null); do timeout 20 scancel "$job"; done
    sleep 2
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        pid=$(cat "$D/run/$name.pid" 2>/dev/null) || continue
        for signal in TERM KILL; do
            # The number may be another process' by now.
            if grep -qsF "$D" "/proc/$pid/cmdline"; then kill -s $signal "$pid"; fi
            sleep 1
        done
    done
}

# A running SLURM job with its node: NUMBER NODE. Snakemake's comment says which job it is.
job_of() { squeue -h -t RUNNING -o '%A %N %k' | grep -E "_wildcards_$1" | head -n 1 | cut -d' ' -f1,2; }

wait_for() {
    local found
    until found=$("$@") && [ -n "$found" ]; do
        kill -0 "$RUN" 2>/dev/null || { echo "the workflow ended before $*" >&2; exit 1; }
        sleep 0.3
    done
    echo "$found"
}

# The process that trains `full`, once a checkpoint is behind it: its locks say in which folder it works.
trainer_behind_checkpoint() {
    local pid folder
    pid=$(pgrep -f "^[^ ]*python[^ ]* .*build plan/full member/full --profile $PROFILE" | head -n 1)
    folder=$(readlink /proc/"$pid"/fd/* | grep -o 'member-[0-9a-f]*' | head -n 1)
    [ -n "$folder" ] && [ -n "$(find "$D/cluster" -path "*$folder*" -name 'step-*.safetensors' -print -quit)" ] && echo "$pid"
}

# Of this cluster: SLURM tells every process of a job the node, and PATH tells the cluster.
processes_of_node() {
    local place
    for place in /proc/[0-9]*; do
        tr '\0' '\n' 2>/dev/null <"$place/environ" >"$D/environ" || continue
        if grep -qx "SLURMD_NODENAME=$1" "$D/environ" && grep -q "^PATH=.*$D" "$D/environ"; then echo "${place#/proc/}"; fi
    done 2>/dev/null
}

lose_node() {
    kill -9 "$(cat "$D/run/slurmd-$1.pid")"
    local pids parents
    pids=$(processes_of_node "$1")
    parents=$(for pid in $pids; do ps -o ppid= -p "$pid"; done | sort -u)
    for pid in $parents; do
        if grep -qs slurmstepd "/proc/$pid/comm"; then kill -9 "$pid" || true; fi
    done
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
}

rm -rf "$D"
mkdir -p "$D"
# By its whole path the profile tells processes of this run from all others.
cp benchmarks/cluster_smoke.yaml "$PROFILE"
trap stop_cluster EXIT
BOOM_HOME=$D/cluster .venv/bin/boom plan --profile "$PROFILE" --jobs "$D/jobs.json"
start_cluster
say "two nodes are up: $(sinfo -h -N -o '%N %T' | paste -sd, -)"
"$SNAKEMAKE" --profile workflow/profiles/slurm --snakefile workflow/Snakefile --directory "$D" \
    --config jobs="$D/jobs.json" --slurm-logdir "$D/logs" --slurm-keep-successful-logs --latency-wait 20 \
    --slurm-init-seconds-before-status-checks 5 --seconds-between-status-checks 5 >"$D/snakemake.log" 2>&1 &
RUN=$!

# Meanwhile the same study without a cluster.
NODES=$(.venv/bin/python -c '
import json, sys
print(*(node for job in json.load(open(sys.argv[1]))["jobs"] for node in job["nodes"]))' "$D/jobs.json")
# shellcheck disable=SC2086
BOOM_HOME=$D/local .venv/bin/boom build $NODES --profile "$PROFILE" --receipt "$D/local.json" >"$D/local.log" 2>&1 &
LOCAL=$!

cancel_a_job() {
    read -r job node < <(wait_for job_of pair_)
    sleep 5
    scancel "$job"
    say "cancelled job $job (pair) on $node"
}
kill_a_training() {
    pid=$(wait_for trainer_behind_checkpoint)
    kill -9 "$pid"
    say "killed process $pid (member full) behind a checkpoint"
}
lose_a_node() {
    read -r job node < <(wait_for job_of 'scores_(s40|full|boom)')
    lose_node "$node"
    say "node $node died with job $job (scores) on it"
}
# Which of them comes first is the scheduler's choice.
cancel_a_job & DONE=($!)
kill_a_training & DONE+=($!)
lose_a_node & DONE+=($!)
wait "$RUN" || { tail -n 40 "$D/snakemake.log"; exit 1; }
for pid in "${DONE[@]}"; do wait "$pid"; done
say "the workflow finished; $(grep -rh 'resumed after step' "$D/logs" | sort -u | paste -sd';' -)"
scontrol -o show job >"$D/slurm_jobs.txt"

wait "$LOCAL" || { tail -n 20 "$D/local.log"; exit 1; }

.venv/bin/python - "$D" <<'PY'
import json
import re
import sys
from datetime import datetime
from pathlib import Path
from statistics import median

folder = Path(sys.argv[1])
receipts = {
    path.relative_to(folder / "cluster/receipts").with_suffix("").as_posix().partition("/")[2]: json.loads(path.read_text())
    for path in (folder / "cluster/receipts").rglob("*.json")
}
cluster = {name: facts for receipt in receipts.values() for name, facts in receipt.items()}
local = json.loads((folder / "local.json").read_text())
states, beyond = {}, []
for line in (folder / "slurm_jobs.txt").read_text().splitlines():
    facts = dict(re.findall(r"(\w+)=(\S*)", line))
    states.setdefault(facts["JobState"], []).append(facts["JobId"])
    name = facts["Comment"].partition("_wildcards_")[2]
    work = receipts.get(name) or receipts.get(name.replace("_", "/", 1))
    if facts["JobState"] == "COMPLETED" and facts["Restarts"] == "0" and work:
        began, ended = (datetime.fromisoformat(facts[key]) for key in ("StartTime", "EndTime"))
        beyond.append((ended - began).total_seconds() - sum(one["seconds"] for one in work.values()))
shown = ", ".join(f"{len(numbers)} {state}" for state, numbers in sorted(states.items()))
print(f"{len(receipts)} jobs of {len(cluster)} nodes, SLURM's jobs: {shown}")
print(f"a job costs {median(beyond):.0f} s beyond its work (median of {len(beyond)}, {min(beyond):.0f} to {max(beyond):.0f} s)")

if {*local} != {*cluster}:
    sys.exit(f"not the same nodes: {sorted({*local} ^ {*cluster})}")
if wrong := [name for name in local if local[name]["digest"] != cluster[name]["digest"]]:
    sys.exit(f"digests differ: {', '.join(wrong)}")
print(f"equal: all {len(local)} digests, of the disturbed cluster and of one machine")
PY
