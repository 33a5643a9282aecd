#!/usr/bin/env python3
"""A QEMU guest behind the output commit gateway, with the simplest checkpointer that there is.

Run it as root; it changes nothing of this host: network, mounts and files are its own and go with it.
It needs qemu-system-x86_64 (Debian: qemu-system-x86 and ipxe-qemu), iproute2 and util-linux. The guest is
QEMU's own network boot ROM, which asks for an address and so has something to say.

What it does, and what a checkpointer of yours would do in its place:

    pause the guest (QMP stop)
    say `seal`; the answer names the epoch that has ended
    take the checkpoint, and keep it: here QEMU's whole state in a file, there on another host
    let the guest go on (QMP cont)
    say `commit EPOCH`: what the guest said in it goes out

Half way the guest is killed. What it had said after its last checkpoint is discarded, and a new QEMU goes on
from that checkpoint: nobody outside has heard anything that did not happen. docs/gate.md has the protocol.
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
import time

TAP, BRIDGE, MAC = "tap0", "br0", "52:54:00:77:00:0a"


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
    """A QEMU and its QMP connection."""

    def __init__(self, folder, checkpoint=None):
        qmp = os.path.join(folder, "qmp.sock")
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-display", "none", "-serial", "none",
                   "-boot", "order=n,reboot-timeout=100", "-S", "-qmp", f"unix:{qmp},server=on,wait=off",
                   "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
                   # The gate copies frames: they must be whole, with their checksums made.
                   "-device", f"virtio-net-pci,netdev=net,mac={MAC},csum=off,gso=off,host_tso4=off,host_tso6=off"]
        if checkpoint:
            command += ["-incoming", f"exec:cat {checkpoint}"]
        self.process = subprocess.Popen(command)
        self.socket = connect(qmp)
        self.lines = self.socket.makefile("rw")
        self.lines.readline()  # its greeting
        self.run("qmp_capabilities")
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

    def save(self, path):
        """The whole state into a file. The guest is paused."""
        self.run("migrate", uri=f"exec:cat > {path}.new && sync {path}.new && mv {path}.new {path}")
        while (status := self.run("query-migrate")["status"]) != "completed":
            if status == "failed":
                sys.exit("qemu: it could not be saved")
            time.sleep(0.002)

    def kill(self):
        self.process.kill()
        self.process.wait()


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


def run(*command):
    subprocess.run(command, check=True)


def main(options, folder):
    run("ip", "tuntap", "add", TAP, "mode", "tap")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    gate_process = subprocess.Popen([options.remus, "gate", "run", "--tap", TAP, "--run-dir", folder,
                                     "--at-exit", "remove"])
    guest = None
    try:
        gate = Gate(os.path.join(folder, TAP, "gate.sock"))
        # The gate is there: only now may anything come by.
        run("ip", "link", "set", TAP, "master", BRIDGE, "up")
        run("ip", "link", "set", BRIDGE, "up")
        outside = Outside()
        guest = Guest(folder)
        gate.ask("hold")
        guest.run("cont")
        checkpoint = os.path.join(folder, "checkpoint")
        wait_for_output(gate)
        print("epoch  paused ms  held  heard outside: before commit, after")
        for n in range(1, options.epochs + 1):
            time.sleep(options.interval_ms / 1000)
            began = time.monotonic()
            guest.run("stop")
            epoch = gate.ask("seal")["epoch"]
            guest.save(checkpoint)
            guest.run("cont")
            paused = (time.monotonic() - began) * 1000
            held, before = gate.ask("status")["held"], outside.count()
            gate.ask(f"commit {epoch}")
            time.sleep(0.02)
            print(f"{epoch:>5}  {paused:>9.0f}  {held:>4}  {before:>29}, {outside.count():>5}")
            if n == options.epochs // 2:
                wait_for_output(gate)
                guest.kill()
                lost = gate.ask("discard")
                print(f"the guest was killed; {lost['discarded']} frames that it said after epoch {epoch} never were")
                guest = Guest(folder, checkpoint)
                guest.run("cont")
        stats = gate.ask("stats")
        names = ("held", "released", "dropped_full", "dropped_unfit", "refused_by_lock")
        print("since the restore: " + ", ".join(f"{stats[name]} {name}" for name in names))
    finally:
        if guest:
            guest.kill()
        gate_process.send_signal(signal.SIGTERM)
        gate_process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remus", default=shutil.which("remus") or "target/release/remus", help="the program")
    parser.add_argument("--epochs", type=int, default=12, help="how many")
    parser.add_argument("--interval-ms", type=int, default=500, help="how long the guest runs in each")
    arguments = parser.parse_args()
    if os.environ.get("QEMU_GATE_INSIDE") is None:
        inside = ["unshare", "--net", "--mount", "--propagation", "private", "--", sys.executable, *sys.argv]
        os.execvpe(inside[0], inside, {**os.environ, "QEMU_GATE_INSIDE": "1"})
    with tempfile.TemporaryDirectory(prefix="qemu-gate-") as scratch:
        main(arguments, scratch)
