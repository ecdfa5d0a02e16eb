#!/usr/bin/env bash
# Boots a real systemd as PID 1 of namespaces of its own, over an overlay of this machine's files, so that the
# units can be started, reloaded, hung, killed and stopped for real. Nothing outside the namespaces is changed.
#
#   boot.sh LAYER [FROM=TO...]     LAYER holds files to lay over /, such as LAYER/etc/systemd/system/backendops.service;
#                                  FROM is a folder of this machine that is to be seen, read-only, at TO
#
# Prints the PID to give to `nsenter -t PID -a` once systemd is up, then waits. Kill that PID with SIGKILL to end it:
# its processes, mounts and control group are gone with it. Needs root, CAP_SYS_ADMIN, overlayfs and cgroup v2.
set -euo pipefail
# pivot_root and its like; an ordinary PATH leaves them out.
PATH=$PATH:/usr/sbin:/sbin
layer=$(readlink -f "${1:?usage: boot.sh LAYER [FROM=TO...]}")
shift

outside() {
  local groups group outer init=
  groups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
  group=$groups/backendops-test-$$
  mkdir "$group"
  echo $$ >"$group/cgroup.procs"
  unshare --mount --pid --fork --kill-child --ipc --uts --net --cgroup env INSIDE=yes bash "$0" "$layer" "$@" &
  outer=$!
  for _ in $(seq 200); do
    init=$(pgrep -P "$outer" || true)
    if [[ -n $init ]] && nsenter -t "$init" -a systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then
      echo "$init"
      break
    fi
    kill -0 "$outer" 2>/dev/null || break
    sleep 0.05
  done
  wait "$outer" || true
  # Back to where we came from, so that the group is empty and can go.
  echo $$ >"$groups/cgroup.procs"
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

inside() {
  local base root unit pair
  # Beside the layer, so that who removes that removes this, too.
  base=$layer.over
  mkdir "$base"
  mount --make-rprivate /
  mount -t tmpfs tmpfs "$base"
  root=$base/root
  mkdir -p "$base/upper" "$base/work" "$root"
  cp -a "$layer/." "$base/upper/"
  mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$root"
  for pair in "$@"; do
    mkdir -p "$root/${pair#*=}"
    mount --bind -o ro "${pair%%=*}" "$root/${pair#*=}"
  done

  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
  for unit in null zero full random urandom tty; do
    : >"$root/dev/$unit"
    mount --bind "/dev/$unit" "$root/dev/$unit"
  done
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  ln -s fd/0 "$root/dev/stdin"
  ln -s fd/1 "$root/dev/stdout"
  ln -s fd/2 "$root/dev/stderr"
  ip link set lo up 2>/dev/null || true

  : >"$root/etc/machine-id"
  # The machine's own backendops, if somebody ran one as root: systemd cannot move its directory out of an overlay's lower layer.
  rm -rf "$root"/etc/systemd/system/*.wants "$root/var/lib/backendops"
  # The kernel is the machine's: what would load modules, set sysctls or talk to devices stays out.
  for unit in \
    systemd-{sysctl,binfmt,modules-load,tmpfiles-setup-dev,tmpfiles-setup,tmpfiles-clean,sysusers,udevd,udev-trigger}.service \
    systemd-{random-seed,timesyncd,remount-fs,pstore,pcrphase,pcrphase-sysinit,update-utmp,journal-flush}.service \
    systemd-{boot-system-token,firstboot}.service systemd-tmpfiles-clean.timer modprobe@.service dbus.socket \
    proc-sys-fs-binfmt_misc.{automount,mount} sys-kernel-{debug,tracing,config}.mount sys-fs-fuse-connections.mount \
    dev-{hugepages,mqueue}.mount systemd-ask-password-{console,wall}.path {keyboard,console}-setup.service; do
    ln -sfn /dev/null "$root/etc/systemd/system/$unit"
  done

  mkdir -p "$root/outside"
  cd "$root"
  pivot_root . outside
  umount -l /outside
  # LoadCredential mounts a private file system for each unit and hands it on.
  mount --make-rshared /
  exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --show-status=0 --log-target=journal
}

if [[ ${INSIDE:-} == yes ]]; then inside "$@"; else outside "$@"; fi
