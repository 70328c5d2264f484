#!/usr/bin/env bash
# One run on nodes of a SLURM cluster, one process for each GPU; preempted or out of time it goes on by itself.
#
#   experiments/launch/slurm.sh NODES GPUS_PER_NODE [wsm train arguments]
#   experiments/launch/slurm.sh 4 8 --config=configs/preset.py:llama_3_1_8b,64 --config.mesh.fsdp=-1 --run=/shared/runs/8b
#
# SBATCH holds more options for sbatch, e.g. SBATCH="--partition=h100 --account=mine"; TIME is the limit of a job. The
# environment that is active is the job's. wsm train saves and ends with status 75 at SIGTERM, which comes two minutes
# before the limit; the job then asks to be queued again. DRY_RUN=1 prints the job and what would be done.
set -euo pipefail

nodes=${1:?NODES is missing} gpus=${2:?GPUS_PER_NODE is missing}
shift 2
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] || { echo "slurm.sh: NODES and GPUS_PER_NODE are numbers" >&2; exit 2; }
[[ " $* " == *" --run="* ]] || { echo "slurm.sh: --run=DIR is missing, a folder that all nodes see" >&2; exit 2; }
read -ra more <<<"${SBATCH:-}"

# JAX learns from SLURM who the processes are; each is given one GPU.
job=$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=wsm
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=${TIME:-24:00:00}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=wsm-%j.log
status=0
srun --kill-on-bad-exit=1 wsm train$(printf ' %q' "$@") || status=\$?
if [[ \$status == 75 || \$status == 143 ]]; then scontrol requeue "\$SLURM_JOB_ID"; exit 0; fi
exit \$status
JOB
)
if [[ ${DRY_RUN:-0} == 1 ]]; then
  printf '%s\n' "$job"
  printf '%q ' sbatch "${more[@]}"; echo
else
  sbatch "${more[@]}" <<<"$job"
fi
