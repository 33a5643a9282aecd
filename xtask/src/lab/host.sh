#!/bin/bash
# Process 1 of the lab, on the machine's own programs: makes of a bare root what a booted system offers, runs the
# command, and leaves its exit status in the job's folder.
#
# Whatever goes wrong before the command ends this program, and with it the kernel: the lab has died in boot.

lab=/run/lab
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() {
    echo "lab: host: $*" >/dev/console
    exit 1
}

# `directory`: where the command starts. `modules`: the /lib/modules of this kernel.
source $lab/settings || die "no settings"

mkdir -p /dev/pts /dev/shm /run/lock /run/netns /lib/modules
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount --bind "$modules" /lib/modules || die "no modules"
# Mounts are seen in other mount namespaces, as on a system that systemd has booted.
mount --make-rshared / || die "/ cannot be shared"

places=(
    "devpts  /dev/pts              gid=5,mode=620,ptmxmode=666"
    "tmpfs   /dev/shm              mode=1777"
    "cgroup2 /sys/fs/cgroup        nsdelegate"
    "bpf     /sys/fs/bpf           mode=700"
    "debugfs /sys/kernel/debug     mode=700"
    "tracefs /sys/kernel/tracing   mode=700"
)
# A job that is itself in /tmp needs what is there.
[[ $directory/ == /tmp/* ]] || places+=("tmpfs /tmp mode=1777")
for place in "${places[@]}"; do
    read -r kind where options <<<"$place"
    mount -t "$kind" -o "$options" "$kind" "$where" || die "$where does not mount"
done

modprobe -a virtio_console kvm_amd tun bridge veth || die "no module of the lab"
[[ -c /dev/kvm ]] || die "no /dev/kvm"
ip link set lo up || die "no loopback"
echo lab >/proc/sys/kernel/hostname

# The port with a name. It appears a moment after its driver.
port() {
    local name
    for _ in {1..100}; do
        name=$(grep -lsx "$1" /sys/class/virtio-ports/*/name) && basename "${name%/name}" && return
        sleep 0.05
    done
    return 1
}

# Code that the kernel rewrites while several CPUs run it can hang the lab: QEMU has a thread for each CPU, and one of them
# may keep for good what it made of the breakpoint that stood there for a moment. The first VM, the first vCPU and the
# first clsact rewrite the scheduler, KVM's way into a guest and the receive path; the last ones rewrite them back. So
# there is one of each as long as the lab runs. The vCPU never does.
hold() {
    local said
    read -r said < <("$@" </dev/null 2>/dev/console) && [[ $said == held ]] || die "does not hold: $1"
}
hold perl -e '
    sub make { my $fd = ioctl $_[0], $_[1], 0 or die "$!"; open my $file, "+<&=", $fd or die "$!"; $file }
    open my $kvm, "+<", "/dev/kvm" or die "$!";
    my $vm = make($kvm, 0xae01);                      # KVM_CREATE_VM
    ioctl $vm, 0xae60, 0 or die "$!";                 # KVM_CREATE_IRQCHIP: the vCPU has a local APIC, switched off
    my $vcpu = make($vm, 0xae41);                     # KVM_CREATE_VCPU
    $| = 1; print "held\n"; sleep 1000 while 1;
'
hold unshare -n sh -c 'tc qdisc add dev lo clsact && echo held && exec sleep infinity'

# QEMU's translator lets every CPU that loads x87 state write into the SVM state of CPU 0, out of turn: there a guest, or the
# kernel that runs it, is soon lost. So CPU 0, which the lab has beyond those it was asked for, runs no guest.
cpus=/sys/fs/cgroup/command
echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control && mkdir $cpus &&
    echo "1-$(($(getconf _NPROCESSORS_ONLN) - 1))" >$cpus/cpuset.cpus || die "no cpuset"

# The command writes into pipes, as it would under any other program that reads it; a port itself can be opened
# only once. A write to a port returns when the machine has it.
mkfifo /run/stdout /run/stderr || die "no pipes"
for output in stdout stderr; do
    port=$(port $output) || die "no port for $output"
    cat /run/$output >"/dev/$port" &
done

: >$lab/started
(echo $BASHPID >$cpus/cgroup.procs && exec setsid bash $lab/command </dev/null) >/run/stdout 2>/run/stderr
status=$?

# All that the command itself has said is out when the pipes end. Processes that it left behind may hold them open:
# those are not waited for.
for _ in {1..20}; do
    [[ -z $(jobs -rp) ]] && break
    sleep 0.1
done
echo $status >$lab/status.new && mv $lab/status.new $lab/status
echo o >/proc/sysrq-trigger
sleep 60
