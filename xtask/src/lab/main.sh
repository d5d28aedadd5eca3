#!/run/lab/busybox sh
# shellcheck shell=dash
# The laboratory's process 1: the rest of a machine, the command, and what is sent back.
# Ports: 1 what happened (`up`, `exit N`), 2 stdout, 3 stderr, 4… a tar stream per --copy-out.
b=/run/lab/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=/dev/null
. /run/lab/settings
fail() { echo "lab: $*"; $b reboot -f; }

$b mkdir -p /dev/pts /dev/shm /dev/mqueue
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t mqueue mqueue /dev/mqueue
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
  $b ln -sf "${link#*:}" "/dev/${link%%:*}"
done
$b hostname lab
$b ip link set lo up

# Modules: from the cache, where the kernel and everybody else looks for them.
$b mkdir -p "/lib/modules/$RELEASE"
$b mount --bind "$MODULES_DIRECTORY" "/lib/modules/$RELEASE" || fail "no modules at $MODULES_DIRECTORY"
# The host's: busybox's reads all of modules.dep for each. What fails is for the command to miss.
/sbin/modprobe -a kvm_amd tun vhost_net vhost_vsock fuse loop

# Data of its own: the host's templates have no holes over 9p, so that each copy is 10 GiB.
$b mkdir -p /run/lab/scratch/hyper /var/lib/hyper
$b mount --bind /run/lab/scratch/hyper /var/lib/hyper

cgroups=/sys/fs/cgroup
if [ "$CGROUP" = v2 ]; then
  # As systemd has it: processes only in the leaves, the command in a service's group.
  $b mount -t cgroup2 -o nsdelegate cgroup2 "$cgroups"
  own=$cgroups/system.slice/lab.service
  $b mkdir -p "$own"
  for group in "$cgroups" "$cgroups/system.slice"; do
    for controller in $($b cat "$group/cgroup.controllers"); do
      echo "+$controller" >"$group/cgroup.subtree_control"
    done
  done
else
  own=
  $b mount -t tmpfs -o mode=755 cgroup "$cgroups"
  while read -r controller _ _ enabled; do
    [ "$enabled" = 1 ] || continue
    $b mkdir "$cgroups/$controller"
    $b mount -t cgroup -o "$controller" cgroup "$cgroups/$controller" || $b rmdir "$cgroups/$controller"
  done </proc/cgroups
fi

last=$((3 + COPIES))
tries=0
port=
until [ -c "$port$last" ]; do
  for found in /dev/vport*p"$last"; do
    port=${found%p*}p
  done
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || fail "port $last does not come"
  $b sleep 0.1
done
exec 3>"${port}1"

# A port can be opened once only, so programs get pipes: /dev/stderr works then. A write to a port
# returns before it has gone out, so a mark tells the end of each stream.
$b mkfifo /run/lab/stdout /run/lab/stderr
$b cat /run/lab/stdout /run/lab/mark >"${port}2" 3>&- &
pumps=$!
$b cat /run/lab/stderr /run/lab/mark >"${port}3" 3>&- &
pumps="$pumps $!"
echo up >&3
(
  [ -z "$own" ] || echo 0 >"$own/cgroup.procs"
  exec $b setsid /bin/sh /run/lab/command </dev/null >/run/lab/stdout 2>/run/lab/stderr 3>&-
) &
wait $!
code=$?

# The machine ends with the command. What it left running still holds the pipes.
for process in /proc/[0-9]*; do
  process=${process#/proc/}
  case " 1 $pumps " in
    *" $process "*) ;;
    *) kill -9 "$process" 2>/dev/null ;;
  esac
done
for pump in $pumps; do
  wait "$pump"
done

at=0
while [ "$at" -lt "$COPIES" ]; do
  at=$((at + 1))
  from="/run/lab/scratch/upper$($b cat "/run/lab/copy.$at")"
  # By the host's shell, so that it is the host's GNU tar. Character devices are what the overlay
  # notes deletions by.
  # shellcheck disable=SC2016
  /bin/sh -c '
    if cd "$1" 2>/dev/null; then
      find . ! -type c ! -type b ! -type s -print0 | tar -c -S --null --no-recursion -T - -f -
    else
      tar -c -T /dev/null -f -
    fi' sh "$from" >"$port$((3 + at))"
done
echo "exit $code" >&3
# We are killed now, unless nobody listens.
$b sleep 5
$b reboot -f
