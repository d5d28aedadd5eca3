#!/bin/busybox sh
# shellcheck shell=dash
# The laboratory's first program: makes this machine's tree the root and goes on in main.sh there.
#   host's root, read-only, 9p ─┐
#   tmpfs or scratch disk ──────┴─► overlay ─► / of the laboratory
set -eu
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
fail() { echo "lab: $*"; reboot -f; }
trap 'fail "the first steps failed, see above"' EXIT
# shellcheck source=/dev/null
. /lab/settings
for module in $MODULES; do
  insmod "/modules/$module" || fail "module $module cannot be loaded"
done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=500000,cache=loose,access=any root /host
if [ "$SCRATCH" = disk ]; then
  tries=0
  until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || fail "the scratch disk does not come"
    sleep 0.1
  done
  mount -t ext4 -o noatime /dev/vda /scratch
else
  mount -t tmpfs -o size=80%,nr_inodes=0 scratch /scratch
fi
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /root
mkdir -p /root/dev /root/proc /root/sys /root/run
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/lab /root/run/lock
cp -a /bin/busybox /lab/. /root/run/lab/
mkdir /root/run/lab/scratch
mount --move /scratch /root/run/lab/scratch
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
trap - EXIT
exec switch_root /root /run/lab/busybox sh /run/lab/main.sh
