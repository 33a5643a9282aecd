#!/bin/busybox sh
# The lab's first program, from its initramfs: makes the root of the machine that runs the lab the root of the
# lab as well, and hands over to host.sh there.
#
# Whatever goes wrong ends this program, and with it the kernel: the lab has died in boot.

export PATH=/bin
/bin/busybox --install -s /bin

die() {
    echo "lab: init: $*" >/dev/console
    exit 1
}

mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs devtmpfs /dev ||
    die "no /proc, /sys or /dev"
for module in /modules/*.ko; do
    insmod "$module" || die "insmod $module failed"
done

# Below: the machine's files, which cannot be written from here. Above: memory, which is gone with the lab.
# The lower files do not change while the lab runs, so the client may keep what it has read.
plan9=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /below /above /root
mount -t 9p -o "$plan9,cache=loose,ro" machine /below || die "the machine's root does not mount"
mount -t tmpfs -o mode=755,size=75% tmpfs /above && mkdir /above/files /above/work || die "no tmpfs"
mount -t overlay -o lowerdir=/below,upperdir=/above/files,workdir=/above/work overlay /root ||
    die "no overlay of the machine's root"

# The machine's /run speaks of services that do not run here.
mount -t tmpfs -o mode=755 tmpfs /root/run && mkdir /root/run/lab || die "no /run"
mount -t 9p -o "$plan9,cache=none" job /root/run/lab || die "the job's folder does not mount"

for place in proc sys dev; do
    mount -o move /$place /root/$place || die "/$place does not move"
done
exec switch_root /root /bin/bash /run/lab/host.sh
die "no switch_root"
