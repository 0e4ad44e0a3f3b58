#!/usr/bin/env bash
# Runs a tiny study under a real Slurm with controller and node on this machine. The node is killed half-way and comes
# back; at the end every run must have the results of an uninterrupted study, to the last bit.
#
# As root on Debian, with the project installed in .venv: apt-get install slurm-wlm munge, then
#   .venv/bin/pip install '.[slurm]' && tests/slurm.sh .venv/bin/python
# It starts munged, slurmctld and slurmd with their files in a temporary folder, and stops them at the end.
set -euo pipefail
[ -e /etc/slurm/slurm.conf ] && { echo "This machine already has a Slurm configuration, /etc/slurm/slurm.conf."; exit 1; }
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${1:-.venv/bin/python}")
export PATH="$(dirname "$PYTHON"):$PATH" OMP_NUM_THREADS=1
HERE=$(mktemp -d)
export SLURM_CONF=$HERE/slurm.conf
NODE=$(hostname -s)
CPUS=$(nproc)

node() { slurmd -f "$SLURM_CONF"; }
lost() { # the node dies: kills its daemon and every process of its jobs
    local doomed=$(pgrep -d " " -f "^slurmd -f $HERE"; pgrep -d " " -x slurmstepd) child
    for process in $doomed; do
        while child=$(pgrep -d " " -P "${process// /,}") && [ -n "$child" ]; do
            doomed+=" $child"
            process=$child
        done
    done
    kill -9 $doomed 2>/dev/null || true
}
end() {
    set +e # stop the rest even if some processes have already ended
    lost
    [ -n "${STUDY:-}" ] && kill -9 "$STUDY" 2>/dev/null
    kill "$(cat "$HERE/slurmctld.pid")"
    [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ] && rm /etc/slurm/slurm.conf
    [ -n "${OWN_MUNGE:-}" ] && kill "$(cat /run/munge/munged.pid)"
    rm -rf "$HERE" results/slurm-killed results/slurm-whole data/slurm
}
trap end EXIT

if ! pgrep -x munged >/dev/null; then
    install -d -o munge -g munge /run/munge
    runuser -u munge -- munged && OWN_MUNGE=1
fi
mkdir -p "$HERE"/{state,spool}
chmod 755 "$HERE"
cat >"$SLURM_CONF" <<EOF
ClusterName=tiny
SlurmctldHost=$NODE
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$HERE/state
SlurmdSpoolDir=$HERE/spool
SlurmctldPidFile=$HERE/slurmctld.pid
SlurmdPidFile=$HERE/slurmd.pid
SlurmctldLogFile=$HERE/slurmctld.log
SlurmdLogFile=$HERE/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
MinJobAge=86400
$(slurmd -C | head -1) State=UNKNOWN
PartitionName=all Nodes=$NODE Default=YES MaxTime=INFINITE State=UP
EOF
mkdir -p /etc/slurm # srun inside a job looks here, because SLURM_CONF does not reach it
ln -s "$SLURM_CONF" /etc/slurm/slurm.conf
slurmctld -f "$SLURM_CONF"
node
for _ in $(seq 30); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

settings() {
    echo "[\"name=$1\", \"data.folder=data/slurm\", \"data.synthetic={n_exams: 36, rows: 96, columns: 80, seed: 1}\",
        \"images={size: 32, workers: 1}\", \"training.epochs=12\", \"evaluation.resamples=50\", \"real_exams=false\",
        \"grid.systems=[resnet18, hybrid_shared]\", \"grid.seeds=[0, 1]\"]" | tr -d '\n'
}
# the profile of the repository with resources that fit this machine; squeue, because sacct needs accounting
snakemake --workflow-profile profiles/slurm --slurm-status-command squeue --config study=config/demo.yaml "settings=$(settings slurm-killed)" \
    --set-threads cohort=1 preprocessing=1 --default-resources mem_mb=1000 runtime=30 \
    --set-resources train:mem_mb=1000 train:runtime=30 >"$HERE/study.log" 2>&1 &
STUDY=$!
for _ in $(seq 300); do
    ls results/slurm-killed/runs/*/progress.json >/dev/null 2>&1 && break
    kill -0 $STUDY 2>/dev/null || { cat "$HERE/study.log"; exit 1; }
    sleep 0.5
done
python -m mammo_utils.workflow.status config/demo.yaml name=slurm-killed "training.epochs=12" \
    "grid.systems=[resnet18, hybrid_shared]" "grid.seeds=[0, 1]"
squeue
echo "the node dies"
lost
sleep 20
sinfo
node
echo "the node is back"
wait $STUDY || { cat "$HERE/study.log"; exit 1; }
grep -c "slurm" "$HERE/study.log" || true

snakemake --cores "$CPUS" --config study=config/demo.yaml "settings=$(settings slurm-whole)" >"$HERE/whole.log" 2>&1
python - <<'EOF'
from pathlib import Path

from tests.kill import assert_equal, results

runs = sorted(path.name for path in Path("results/slurm-whole/runs").iterdir())
assert len(runs) == 4
for run in runs:
    killed, whole = (results(Path(f"results/slurm-{name}/runs") / run) for name in ("killed", "whole"))
    assert_equal(killed, whole)
assert Path("results/slurm-killed/html/index.html").is_file()
print(f"{len(runs)} runs, each with the results of the uninterrupted study, to the last bit")
EOF
