#!/bin/busybox sh
# The Linux guest's only script: mounts, drivers, the network, redis-server. It says on the console how far it is;
# the times are seconds since the guest's kernel began.
#
# Words of the kernel's command line that it knows:
#   remus.ip=ADDRESS/LENGTH   the address of eth0; without it eth0 stays down
#   remus.gw=ADDRESS          the default route
#   remus.dirty=PAGES         once ready, write to so many pages every 25 ms (dirty.rs)
#   remus.poweroff            once ready, switch the guest off
#   remus.reboot              once ready, reset it

export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev

say() {
    read -r uptime _ </proc/uptime
    echo "remus-guest: $1 $uptime $2" >/dev/console
}

say userspace
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp

for module in /modules/*.ko; do
    insmod "$module" || say "insmod $module failed"
done

read -r words </proc/cmdline
for word in $words; do
    case $word in
    remus.ip=*) address=${word#*=} ;;
    remus.gw=*) gateway=${word#*=} ;;
    remus.dirty=*) dirty=${word#*=} ;;
    remus.poweroff) end=poweroff ;;
    remus.reboot) end=reboot ;;
    esac
done

ip link set lo up
if [ -n "$address" ]; then
    ip address add "$address" dev eth0 && ip link set eth0 up || say "no eth0"
    [ -z "$gateway" ] || ip route add default via "$gateway" || say "no route"
fi

# What it holds is in memory, and nowhere else: it is this memory that a takeover keeps.
redis-server --bind 0.0.0.0 --port 6379 --protected-mode no --save '' --appendonly no >/run/redis.log 2>&1 &
until grep -q ':18EB 00000000:0000 0A' /proc/net/tcp; do # port 6379 listens
    kill -0 $! 2>/dev/null || { say "redis-server ended"; cat /run/redis.log >/dev/console; break; }
    sleep 0.02
done

read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource
say ready "cpus=$(nproc) clocksource=$clock"

[ -z "$dirty" ] || dirty "$dirty" &
[ -z "$end" ] || "$end" -f
while :; do
    wait
    sleep 1
done
