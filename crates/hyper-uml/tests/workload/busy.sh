#!/bin/busybox sh
# PID 1 of a guest that does a little of everything, so that the kernel makes every system call it
# ever makes on the host. Says what it does on the link; the last word is DONE.
export PATH=/bin
busybox mkdir -p /dev /proc /sys /tmp /mnt
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox --install -s /bin
mount -t tmpfs -o size=90% tmp /tmp
exec </dev/null >/dev/ttyS0 2>&1
fail() { echo "FAILED $*"; poweroff -f; sleep 60; }

echo disks
mke2fs -q /dev/ubda >/dev/null || fail mke2fs
mount -t ext4 -o discard /dev/ubda /mnt || fail mount
dd if=/dev/urandom of=/mnt/file bs=64k count=64 2>/dev/null || fail write
sum=$(md5sum </mnt/file)
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(md5sum </mnt/file)" = "$sum" ] || fail read
rm /mnt/file
fstrim /mnt || fail fstrim
umount /mnt
blkdiscard /dev/ubdb || fail blkdiscard
blkdiscard -z /dev/ubdb 2>/dev/null
[ "$(dd if=/dev/ubdb bs=4k count=1 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] || fail discarded

echo random
[ ! -c /dev/hwrng ] || dd if=/dev/hwrng of=/dev/null bs=16 count=4 2>/dev/null || fail hwrng

echo processes
i=0
while [ $i -lt 300 ]; do true & i=$((i + 1)); done
wait
[ "$(seq 1 3000 | sort -n | tail -n 1)" = 3000 ] || fail pipes
i=0
while [ $i -lt 40 ]; do sleep 1 & i=$((i + 1)); done
wait

echo signals
timeout 1 sleep 10
sh -c 'kill -SEGV $$'
sleep 5 & kill -STOP $!; sleep 0.1; kill -CONT $!; kill $!; wait

echo namespaces
unshare -n -m -u -i -p -f true || fail unshare
unshare -n ip link set lo up || fail ip
ip link set lo up && ping -c 1 -W 2 127.0.0.1 >/dev/null || fail ping
date -s '2031-01-02 03:04:05' >/dev/null || fail date

echo memory
dd if=/dev/zero of=/tmp/fill bs=1M count=40 2>/dev/null || fail fill
rm /tmp/fill
sh -c 'tail /dev/zero' && fail oom
echo DONE
poweroff -f
sleep 60
