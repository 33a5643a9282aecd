//! Whoever speaks the replication protocol to a daemon under test, byte by byte: a primary with something to hide, a
//! backup that only refuses.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use remus::{
    checkpoint::STATE_VERSION,
    names::VmName,
    wire::{
        Ancestry, Features, Frame, FrameBuffer, Hello, Lane, Nonce, Session, Timing, ToBackup,
        ToPrimary, VmId, WireError,
    },
};
use remus_abi::Term;
use tokio::time::sleep;

use crate::{
    pair::Pair,
    remus::{Daemon, VM},
    topology::BACKUP,
};

/// Reads the next message.
pub fn receive<T>(
    stream: &mut TcpStream,
    lane: Lane,
    decode: impl Fn(&Frame<'_>) -> Result<T, WireError>,
) -> T {
    let mut frames = FrameBuffer::new(lane);
    loop {
        if let Some(frame) = frames.next_frame().unwrap() {
            return decode(&frame).unwrap();
        }
        let read = stream.read(frames.space()).unwrap();
        assert!(read > 0, "the other end closed the connection");
        frames.filled(read);
    }
}

/// The first word of a primary that runs the rig's VM, with so much memory and this CPU.
pub fn hello(memory_mib: u32, cpu: &str) -> Hello {
    let shape = format!(
        r#"{{"state":{STATE_VERSION},"shape":{{"memory_mib":{memory_mib},"vcpus":1,"mac":[82,84,0,119,0,10],
            "mtu_bytes":1500,"offloads":"none","disks":[]}},"tap":"tap0","bridge":"br0",
            "gate":{{"buffer_mib":1,"release":"ReEntry","engine":"bpf"}}}}"#
    );
    Hello {
        vm: VmName::new(VM).unwrap(),
        session: Session::new(7).unwrap(),
        features: Features::NONE,
        id: VmId::new(7).unwrap(),
        nonce: Nonce::new(7).unwrap(),
        ancestry: Ancestry::none(),
        term: Term::FIRST,
        ram_pages: memory_mib << 8,
        timing: Timing::default(),
        acks_to: None,
        shape: shape.into_bytes(),
        cpu: cpu.as_bytes().to_vec(),
    }
}

/// What the backup says to a Hello.
pub fn ask(pair: &Pair, hello: Hello) -> ToPrimary {
    let mut stream = connect(pair);
    let mut bytes = Vec::new();
    ToBackup::Hello(hello).encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
    receive(&mut stream, Lane::ControlToPrimary, ToPrimary::decode)
}

/// A connection to the backup, from the primary's host.
pub fn connect(pair: &Pair) -> TcpStream {
    let _entered = pair.topology.primary.netns().enter().unwrap();
    TcpStream::connect(BACKUP).unwrap()
}

/// Waits until the backup takes connections.
pub async fn backup_listens(pair: &Pair, backup: &mut Daemon) {
    while !pair.logged("backup").contains("waiting for primaries") {
        backup.still_runs().unwrap();
        sleep(Duration::from_millis(10)).await;
    }
}
