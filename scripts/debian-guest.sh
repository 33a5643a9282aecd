#!/bin/bash
# Makes a Debian for a VM that Remus protects: Debian's cloud kernel, systemd, redis-server, nginx and PostgreSQL, all
# as packaged. Takes some minutes. Run it as root: mmdebstrap has ways to do without, which were not tried here.
#
#   apt-get install mmdebstrap squashfs-tools-ng
#   scripts/debian-guest.sh /srv/debian >/etc/remus/debian.toml
#
# leaves vmlinuz, initrd.img and root.img in /srv/debian, and prints the config that goes with them. Copy root.img to
# the backup, into the directory of `remus backup --disks`. What stands behind the folder goes to mmdebstrap as it is:
#
#   --include=PACKAGE,...                            more packages
#   --customize-hook='copy-in FILE... /etc'          files of yours
#   --customize-hook='chroot "$1" passwd -d root'    root without a password on the console; else nobody can log in
#
# THE SERVICES LET IN WHOEVER REACHES THEM: this is an example. What opens them is marked below.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [OPTION OF mmdebstrap]..." >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
new=$(mktemp -d "$folder/new.XXXXXX")
trap 'rm -rf "$new"' EXIT

# Runs in the new root, once all is installed.
cat >"$new/prepare" <<'PREPARE'
set -eu

# An initial RAM disk of no more than what finds the disk and mounts it. With MODULES=most, the default, it is three
# times as large, has the drivers too, and only wants to be told of squashfs.
echo MODULES=list >/etc/initramfs-tools/conf.d/modules
printf '%s\n' virtio_mmio virtio_blk squashfs overlay >>/etc/initramfs-tools/modules

# The disk is read-only: memory is laid over it. /run goes on into the system, and with it what is mounted there.
cat >/etc/initramfs-tools/scripts/local-bottom/overlay <<'END'
#!/bin/sh
[ "$1" != prereqs ] || exit 0
set -e
mkdir /run/overlay
mount -t tmpfs -o mode=755,size=50% memory /run/overlay
mkdir /run/overlay/disk /run/overlay/written /run/overlay/work
mount -o move "$rootmnt" /run/overlay/disk
mount -t overlay -o lowerdir=/run/overlay/disk,upperdir=/run/overlay/written,workdir=/run/overlay/work overlay "$rootmnt"
END
chmod +x /etc/initramfs-tools/scripts/local-bottom/overlay
update-initramfs -u
mv /boot/vmlinuz-* /boot/vmlinuz
mv /boot/initrd.img-* /boot/initrd.img

# The address comes from the kernel's command line (ip=), so that one image does for many VMs.
systemctl enable systemd-network-generator systemd-networkd
echo debian >/etc/hostname
echo '127.0.0.1 localhost debian' >/etc/hosts
rm -f /etc/resolv.conf
: >/etc/machine-id # a new one at each boot

# Nothing that these look after is here, or outlives the VM.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty-static.service

# Open to all: redis. What it would save on disk would be in memory a second time.
cat >>/etc/redis/redis.conf <<END
bind 0.0.0.0
protected-mode no
save ""
END

# Open to all: PostgreSQL, as any user.
cd /etc/postgresql/*/main
echo "listen_addresses = '*'" >conf.d/listen.conf
echo 'host all all all trust' >>pg_hba.conf

# Each reply of nginx says which connection it is on, and the how manieth it is there.
cat >/etc/nginx/conf.d/connection.conf <<'END'
add_header X-Connection "$connection $connection_requests" always;
keepalive_requests 1000000;
END
PREPARE

mmdebstrap --variant=minbase \
    --include=linux-image-cloud-amd64,systemd-sysv,udev,iproute2,redis-server,nginx,postgresql \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="upload '$new/prepare' /root/prepare" \
    --customize-hook='chroot "$1" sh /root/prepare && rm "$1/root/prepare"' \
    --customize-hook="download /boot/vmlinuz '$new/vmlinuz'" \
    --customize-hook="download /boot/initrd.img '$new/initrd.img'" \
    --customize-hook='rm -r "$1/boot/vmlinuz" "$1/boot/initrd.img"' \
    "$@" bookworm - | tar2sqfs --quiet --compressor zstd --comp-extra level=5 "$new/root.img" >&2

for file in vmlinuz initrd.img root.img; do
    [ -s "$new/$file" ] || { echo "$0: $file was not made" >&2; exit 1; }
done
mv "$new/vmlinuz" "$new/initrd.img" "$new/root.img" "$folder"

cat <<END
name = "debian"

[machine]
memory_mib = 1024
vcpus = 1
kernel = "$folder/vmlinuz"
initrd = "$folder/initrd.img"
# ip=ADDRESS::GATEWAY:NETMASK:::none
cmdline = "console=ttyS0 quiet root=/dev/vda ip=192.0.2.10::192.0.2.1:255.255.255.0:::none"

[[disk]]
path = "$folder/root.img"
readonly = true

[net]
tap = "tap0"
bridge = "br0"
mac = "52:54:00:00:02:0a"

[protection]
backup = "10.99.0.2:7000"
END
