#!/bin/sh
# A Xen host's first domain without a service manager: what xl needs, a network, and a shell for the harness on a TCP
# port of the lab's own network.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
for d in /tmp /dev/shm; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
mkdir -p /run/lock /run/xen /run/xenstored /dev/pts /var/log/xen/console /var/lib/xen /var/lib/longhaul /lab
mount -t devpts devpts /dev/pts
rm -rf /var/run; ln -s /run /var/run
ln -sf mawk /usr/bin/awk
for e in $(cat /proc/cmdline); do case $e in lab.name=*) name=${e#lab.name=};; lab.address=*) address=${e#lab.address=};; esac; done
echo "$name" > /proc/sys/kernel/hostname
printf 'root:x:0:0:root:/root:/bin/sh\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n' > /etc/passwd
for m in virtio_net xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-netback bridge; do modprobe $m 2>/dev/null; done
mount -t xenfs xenfs /proc/xen
# What belongs to this host alone: the program under test, guests, everything that is looked at afterwards.
mount -t ext4 -o noatime /dev/vdb /lab && mkdir -p /lab/var && mount --bind /lab/var /var/lib/longhaul
ip link set lo up
brctl addbr xenbr0
ip link set eth0 mtu 60000 up; brctl addif xenbr0 eth0
ip link set xenbr0 mtu 60000 up; ip addr add "$address/24" dev xenbr0
socat TCP-LISTEN:2222,fork,reuseaddr EXEC:/bin/bash,stderr &
export XENSTORED_ROOTDIR=/run/xenstored
# For scp between the two hosts, as the paper did it. The key is the lab's own and opens nothing else.
mkdir -p /run/sshd /root/.ssh; chmod 700 /root /root/.ssh
cp /lab/ssh/id /lab/ssh/id.pub /root/.ssh/; chmod 600 /root/.ssh/id; cp /lab/ssh/id.pub /root/.ssh/authorized_keys
/usr/sbin/sshd -f /dev/null -h /root/.ssh/id -o UsePAM=no -o PidFile=none -o StrictModes=no -o 'Subsystem=sftp internal-sftp'
D=/usr/lib/xen-4.17/bin
$D/xenstored --pid-file /run/xenstore.pid
n=0; while ! xenstore-read -s / >/dev/null 2>&1 && [ $n -lt 200 ]; do n=$((n+1)); sleep 0.1; done
$D/xen-init-dom0
$D/xenconsoled --pid-file /run/xenconsoled.pid --log=guest --log-dir=/var/log/xen/console
xl info >/dev/null && echo "DOM0-READY up $(cut -d' ' -f1 /proc/uptime)"
while :; do sleep 3600; done
