#!/usr/bin/env python3
"""A QEMU guest behind the output commit gateway, with the simplest checkpointer that there is.

Run it as root; it changes nothing of this host: network, mounts and files are its own and go with it.
It needs qemu-system-x86_64 (Debian: qemu-system-x86 and ipxe-qemu), iproute2 and util-linux, and no KVM: QEMU
translates, unless it is told otherwise (--accel kvm).

--guest rom (the default) is QEMU's own network boot ROM, which asks for an address and so has something to say.
--guest linux is a Linux with redis-server (`cargo xtask guest linux` makes it). Clients outside count in it, each on a
connection of its own: every reply must be one more than the last, before the guest is killed and after, and at the
end each counter must be as high as the client was told.

The exit status is 1 if one was not, or if more frames were heard outside than the gate has let go.

What it does, and what a checkpointer of yours would do in its place:

    pause the guest (QMP stop)
    say `seal`; the answer names the epoch that has ended
    take the checkpoint, and keep it: here QEMU's whole state in a file, there on another host
    let the guest go on (QMP cont)
    say `commit EPOCH`: what the guest said in it goes out

Half way the guest is killed, its clients at work. What it had said after its last checkpoint is discarded, and a new
QEMU goes on from that checkpoint: nobody outside has heard anything that did not happen. docs/gate.md has the protocol,
docs/qemu.md what is between this and a product.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

TAP, BRIDGE, MAC = "tap0", "br0", "52:54:00:77:00:0a"
HOST, GUEST, PORT = "10.0.0.1", "10.0.0.2", 6379
# The gate copies frames: they must be whole, with their checksums made.
WHOLE = f"netdev=net,mac={MAC},csum=off,gso=off,host_tso4=off,host_tso6=off"
BOOT_LIMIT_S = 300


class Gate:
    """The line protocol: one line, one answer."""

    def __init__(self, path):
        self.socket = connect(path)
        self.lines = self.socket.makefile("rw")

    def ask(self, request):
        """The values of an `ok`; any other answer ends the program."""
        self.lines.write(request + "\n")
        self.lines.flush()
        word, _, rest = self.lines.readline().strip().partition(" ")
        if word != "ok":
            sys.exit(f"gate: {request}: {word} {rest}")
        return dict(value.split("=") for value in rest.split())


class Guest:
    """A QEMU, paused, and its QMP connection."""

    def __init__(self, folder, machine):
        qmp = os.path.join(folder, "qmp.sock")
        command = ["qemu-system-x86_64", "-display", "none", "-S",
                   "-qmp", f"unix:{qmp},server=on,wait=off",
                   "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no", *machine]
        self.process = subprocess.Popen(command)
        self.socket = connect(qmp)
        self.lines = self.socket.makefile("rw")
        self.lines.readline()  # its greeting
        self.run("qmp_capabilities")
        # A checkpoint is written as fast as can be.
        self.run("migrate-set-parameters", **{"max-bandwidth": 0})
        while self.run("query-status")["status"] == "inmigrate":
            time.sleep(0.01)

    def run(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                sys.exit(f"qemu: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def kill(self):
        self.process.kill()
        self.process.wait()


class Stream:
    """Checkpoints as QEMU's migration writes them: everything in one file."""

    memory = []

    def save(self, guest, path):
        guest.run("migrate", uri=f"exec:cat > {path}.new && sync {path}.new && mv {path}.new {path}")
        while (status := guest.run("query-migrate")["status"]) != "completed":
            if status == "failed":
                sys.exit("qemu: it could not be saved")
            time.sleep(0.002)
        return os.path.getsize(path)

    def restore(self, folder, machine, path):
        return Guest(folder, [*machine, "-incoming", f"exec:cat {path}"])


class Apart:
    """RAM in a file that QEMU shares with us, and is ours to copy; from QEMU only the state of its devices.

    All of RAM is copied each time, since nothing here says what was written. Not for a machine with other memory that
    its guest writes, such as a PC with its shadowed ROMs.
    """

    def __init__(self, folder):
        self.ram = os.path.join(folder, "ram")
        self.memory = ["-object", f"memory-backend-file,id=ram,size=256M,share=on,mem-path={self.ram}",
                       "-machine", "memory-backend=ram"]

    def save(self, guest, path):
        os.mkdir(f"{path}.new")
        devices = os.path.join(f"{path}.new", "devices")
        guest.run("xen-save-devices-state", filename=devices, live=False)
        shutil.copyfile(self.ram, os.path.join(f"{path}.new", "ram"))
        os.rename(f"{path}.new", path)
        return os.path.getsize(os.path.join(path, "devices"))

    def restore(self, folder, machine, path):
        shutil.copyfile(os.path.join(path, "ram"), self.ram)
        # As Xen does it: such a state is a stream without RAM, and says nothing of its machine or of itself.
        return Guest(folder, [*machine, "-global", "migration.send-configuration=off",
                              "-incoming", f"exec:cat {os.path.join(path, 'devices')}"])


def rom():
    """A machine that boots from the network, for ever."""
    return ["-m", "32", "-serial", "none", "-boot", "order=n,reboot-timeout=100", "-device", f"virtio-net-pci,{WHOLE}"]


def linux(kernel, initrd, console, accel):
    """A machine without PCI that runs this Linux."""
    # A translated one finds nothing there to measure its clock by; it is this host's.
    clock = f" tsc_early_khz={tsc_khz()}" if accel == "tcg" else ""
    return ["-M", "microvm", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot",
            "-chardev", f"file,id=console,append=on,path={console}", "-serial", "chardev:console",
            "-kernel", kernel, "-initrd", initrd,
            "-append", f"console=ttyS0 quiet loglevel=4 panic=-1 remus.ip={GUEST}/24{clock}",
            "-global", "virtio-mmio.force-legacy=false", "-device", f"virtio-net-device,{WHOLE}"]


def tsc_khz():
    with open("/proc/cpuinfo", encoding="ascii") as lines:
        return next(int(float(line.split(":")[1]) * 1000) for line in lines if line.startswith("cpu MHz"))


class Counter(threading.Thread):
    """A client that counts in the guest, and remembers what it was told."""

    def __init__(self, n):
        super().__init__(daemon=True)
        self.key, self.told, self.wrong, self.stop = f"counter{n}", 0, [], False
        self.socket = socket.create_connection((GUEST, PORT), timeout=60)
        self.lines = self.socket.makefile("rb")

    def run(self):
        try:
            while not self.stop:
                answer = self.ask("INCR")
                if answer != self.told + 1:
                    self.wrong.append(f"{self.key} was {self.told}, and one more is {answer}")
                self.told = answer
        except OSError as error:
            self.wrong.append(f"{self.key}: the connection is lost: {error}")

    def ask(self, command):
        self.socket.sendall(f"{command} {self.key}\r\n".encode())
        line = self.lines.readline()
        if line.startswith(b"$"):
            line = b":" + self.lines.readline()
        if not line.startswith(b":"):
            raise OSError(f"{command} was answered {line}")
        return int(line[1:])

    def finish(self):
        """Ends it, and asks the guest what it remembers. Its output is not held any more."""
        self.stop = True
        self.join()
        if not self.wrong and (is_now := self.ask("GET")) != self.told:
            self.wrong.append(f"{self.key} was {self.told} and is {is_now} at the end")


class Outside:
    """Whoever listens to the bridge: counts what the guest has been heard to say."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((BRIDGE, 0))
        self.socket.setblocking(False)
        self.heard = 0

    def count(self):
        while True:
            try:
                frame = self.socket.recv(65536)
            except BlockingIOError:
                return self.heard
            if frame[6:12] == bytes.fromhex(MAC.replace(":", "")):
                self.heard += 1


def connect(path):
    """Connects to a unix socket that somebody is about to open."""
    until = time.monotonic() + 10
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(path)
            return client
        except OSError:
            client.close()
            if time.monotonic() > until:
                sys.exit(f"nobody listens at {path}")
            time.sleep(0.01)


def wait_for_output(gate):
    """Until the guest, which speaks when it likes, has said something that is held; or for ten seconds."""
    until = time.monotonic() + 10
    while gate.ask("status")["held"] == "0" and time.monotonic() < until:
        time.sleep(0.05)


def let_go(gate):
    """How many frames the gate has let go since it was made."""
    stats = gate.ask("stats")
    return int(stats["released"]) + int(stats["passed"])


def wait_for_boot(guest, console):
    """Until the Linux on this console has its server."""
    until = time.monotonic() + BOOT_LIMIT_S
    while guest.process.poll() is None and time.monotonic() < until:
        if os.path.exists(console):
            with open(console, encoding="utf-8", errors="replace") as lines:
                if "remus-guest: ready" in lines.read():
                    return
        time.sleep(0.1)
    sys.exit("the guest does not boot")


def remove(checkpoint):
    """One that another has taken the place of."""
    if os.path.isdir(checkpoint):
        shutil.rmtree(checkpoint)
    elif os.path.exists(checkpoint):
        os.remove(checkpoint)


def run(*command):
    subprocess.run(command, check=True)


def main(options, folder, ram):
    run("ip", "tuntap", "add", TAP, "mode", "tap")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HOST}/24", "dev", BRIDGE)
    gate_process = subprocess.Popen([options.remus, "gate", "run", "--tap", TAP, "--run-dir", folder,
                                     "--at-exit", "remove"])
    console = os.path.join(folder, "console")
    is_linux = options.guest == "linux"
    checkpoints = Apart(ram) if options.checkpoint == "apart" else Stream()
    machine = linux(options.kernel, options.initrd, console, options.accel) if is_linux else rom()
    machine += ["-accel", options.accel, *checkpoints.memory]
    guest, counters, wrong, of_the_dead = None, [], [], 0
    try:
        gate = Gate(os.path.join(folder, TAP, "gate.sock"))
        # The gate is there: only now may anything come by.
        run("ip", "link", "set", TAP, "master", BRIDGE, "up")
        run("ip", "link", "set", BRIDGE, "up")
        outside = Outside()
        guest = Guest(folder, machine)
        if is_linux:
            # It boots, and gets its clients, before it is protected.
            gate.ask("open")
            guest.run("cont")
            began = time.monotonic()
            wait_for_boot(guest, console)
            print(f"the guest has booted, in {time.monotonic() - began:.0f} s")
            counters = [Counter(n) for n in range(options.clients)]
            guest.run("stop")
        gate.ask("hold")
        guest.run("cont")
        for counter in counters:
            counter.start()
        wait_for_output(gate)
        print("epoch  paused ms      KiB  held  heard outside: before commit, after   replies")
        for n in range(1, options.epochs + 1):
            time.sleep(options.interval_ms / 1000)
            began = time.monotonic()
            guest.run("stop")
            epoch = gate.ask("seal")["epoch"]
            checkpoint = os.path.join(folder, f"checkpoint-{n}")
            size = checkpoints.save(guest, checkpoint)
            guest.run("cont")
            paused = (time.monotonic() - began) * 1000
            held, before = gate.ask("status")["held"], outside.count()
            if before > of_the_dead + let_go(gate):
                wrong.append(f"{before} frames were heard before the commit of epoch {epoch}")
            gate.ask(f"commit {epoch}")
            time.sleep(0.02)
            replies = sum(counter.told for counter in counters)
            print(f"{epoch:>5}  {paused:>9.0f}  {size >> 10:>7}  {held:>4}  {before:>29}, {outside.count():>5}  "
                  f"{replies:>8}")
            if n == options.epochs // 2:
                wait_for_output(gate)
                guest.kill()
                of_the_dead = let_go(gate)
                lost = gate.ask("discard")
                print(f"the guest was killed; {lost['discarded']} frames that it said after epoch {epoch} never were")
                guest = checkpoints.restore(folder, machine, checkpoint)
                guest.run("cont")
            remove(os.path.join(folder, f"checkpoint-{n - 1}"))
        stats = gate.ask("stats")
        names = ("held", "released", "dropped_full", "dropped_unfit", "refused_by_lock", "unguarded")
        print("since the restore: " + ", ".join(f"{stats[name]} {name}" for name in names))
        if counters:
            # Every epoch is committed but the one that is open: from here on the guest runs without checkpoints.
            gate.ask("open")
            for counter in counters:
                counter.finish()
            contradictions = [text for counter in counters for text in counter.wrong]
            print(f"{sum(counter.told for counter in counters)} replies on {len(counters)} connections, "
                  f"{len(contradictions)} lost or contradicted")
            wrong += contradictions
        wrong += [f"{stats[name]} {name}" for name in ("refused_by_lock", "unguarded") if stats[name] != "0"]
        return "\n".join(wrong) or 0
    finally:
        if guest:
            guest.kill()
        gate_process.send_signal(signal.SIGTERM)
        gate_process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remus", default=shutil.which("remus") or "target/release/remus", help="the program")
    parser.add_argument("--guest", choices=["rom", "linux"], default="rom", help="what runs")
    parser.add_argument("--checkpoint", choices=["stream", "apart"], default="stream",
                        help="QEMU's migration stream; or, for the Linux, its devices' state and a copy of its RAM")
    parser.add_argument("--accel", choices=["tcg", "kvm"], default="tcg", help="what runs the guest's instructions")
    parser.add_argument("--kernel", default="target/lab/guest/vmlinuz", help="of the Linux")
    parser.add_argument("--initrd", default="target/lab/guest/initramfs.cpio.gz", help="of the Linux")
    parser.add_argument("--clients", type=int, default=16, help="that count in the Linux")
    parser.add_argument("--epochs", type=int, default=12, help="how many")
    parser.add_argument("--interval-ms", type=int, default=500, help="how long the guest runs in each")
    arguments = parser.parse_args()
    if arguments.checkpoint == "apart" and arguments.guest != "linux":
        parser.error("--checkpoint apart is for --guest linux")
    if os.environ.get("QEMU_GATE_INSIDE") is None:
        inside = ["unshare", "--net", "--mount", "--propagation", "private", "--", sys.executable, *sys.argv]
        os.execvpe(inside[0], inside, {**os.environ, "QEMU_GATE_INSIDE": "1"})
    prefix = "qemu-gate-"
    # However it ends, what it has made goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with (tempfile.TemporaryDirectory(prefix=prefix) as scratch,
          tempfile.TemporaryDirectory(prefix=prefix, dir="/dev/shm") as shared):
        sys.exit(main(arguments, scratch, shared))
