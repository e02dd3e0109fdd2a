#!/usr/bin/env bash
# A real SLURM cluster on this machine for tests: munged, slurmctld and two nodes of slurmd, all on 127.0.0.1, as root,
# without systemd, cgroups or DNS. It needs Debian's packages slurmctld, slurmd, slurm-client and munge. It writes to its
# folder only, and adds one marked line to /etc/hosts while it is up.
#   slurm_cluster.sh <folder> <port> up | down
# sbatch, squeue and sacct then need SLURM_CONF=<folder>/slurm.conf and PATH=<folder>/bin:$PATH.
set -euo pipefail
umask 022
DIR=$1 PORT=$2 NODES="tnode1 tnode2" TAG="# slurm_cluster $1"
export SLURM_CONF=$DIR/slurm.conf

wait_for() { # what, command...
  local what=$1 end=$((SECONDS + 30)); shift
  while ! "$@" >/dev/null 2>&1; do
    if ((SECONDS > end)); then echo "slurm_cluster: no $what" >&2; tail -n 20 "$DIR"/log/* >&2; exit 1; fi
    sleep 0.05
  done
}
stop() { # pidfiles: end their processes, all at once, as each takes two seconds, and wait until they are gone
  local pids; pids=$(cat "$@" 2>/dev/null) || true
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do
    for _ in $(seq 100); do [ -e "/proc/$pid" ] || break; sleep 0.05; done
    [ ! -e "/proc/$pid" ] || kill -KILL "$pid"
  done
}
hosts() { # line
  local text; text=$(grep -vF "$TAG" /etc/hosts || true); printf '%s\n' "$text" >/etc/hosts
  [ -z "$1" ] || echo "$1 $TAG" >>/etc/hosts
}
idle() { [ "$(sinfo -h -N -o %t | grep -c idle)" = 2 ]; }

configure() {
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
ReturnToService=2
KillWait=3
JobRequeue=1
MaxArraySize=8
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=tnode[1-2] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + 2))] CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=5
CONF
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$DIR/cgroup.conf"
  # submitit calls sacct, which needs an accounting database. There is none, so squeue answers in its place.
  printf '#!/bin/sh\necho "JobID|State|NodeList"\nexec squeue -h -r -t all -o "%%i|%%T|%%N"\n' >"$DIR/bin/sacct"
  chmod 755 "$DIR/bin/sacct"
}

up() {
  mkdir -p "$DIR"/{state,spool/tnode1,spool/tnode2,log,bin}
  # SLURM resolves names only if some network interface has an address outside 127/8.
  hostname -I | grep -q . || ip addr add 192.0.2.1/32 dev lo
  hosts "127.0.0.1 $NODES$(getent hosts "$(hostname)" >/dev/null || echo " $(hostname)")"
  configure
  (umask 077; head -c 1024 /dev/urandom >"$DIR/munge.key")
  munged --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge.seed"
  wait_for munge munge -n -S "$DIR/munge.socket"
  slurmctld
  wait_for slurmctld scontrol ping
  for node in $NODES; do slurmd -N "$node"; done
  wait_for "idle nodes" idle
}

down() {
  scancel -f -u root 2>/dev/null || true
  for _ in $(seq 100); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
  stop "$DIR"/slurmd-*.pid "$DIR/slurmctld.pid" "$DIR/munged.pid"
  hosts ""
}

case ${3:-} in
  up | down) "$3" ;;
  *) sed -n '2,6p' "$0"; exit 2 ;;
esac
