#!/bin/busybox sh
# The first process of a Xen host's first domain: finds the root file system and hands over to dom0-init.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs dev /dev
for m in $($B cat /modules/order); do $B insmod /modules/$m; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 200 ]; do $B usleep 50000; n=$((n+1)); done
$B mount -t ext4 -o rw,noatime /dev/vda /mnt || { echo "DOM0-FAILED no root file system"; $B poweroff -f; }
$B mount -t tmpfs tmpfs /mnt/run
$B cp /dom0-init /mnt/run/dom0-init
for d in dev proc sys; do $B mount --move /$d /mnt/$d; done
exec $B switch_root /mnt /bin/sh /run/dom0-init
