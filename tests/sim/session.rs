//! Both ends of a session, joined by nothing but bytes: dirty book, staging, encoder, frames, chain, assembly and
//! both brains, with connections that break in the middle of a frame.

use std::collections::BTreeMap;

use proptest::prelude::*;
use remus::{
    checkpoint::{
        Assembly, Content, DirtyBook, Encoder, EncoderSettings, PAGE_SIZE, Page, PageSet, Staging,
    },
    names::VmName,
    replication::{Backup, Known, Pipeline, Policy, Sealed, SyncNext},
    wire::{
        Ancestry, Attach, Begin, BulkToBackup, BulkToPrimary, Chain, End, Features, FrameBuffer,
        HEADER_LEN, Hello, Instance, Kind, Lane, Moment, Nonce, Session, Timing, VmId, head,
    },
};
use remus_abi::{Epoch, Term};
use rig::permits;

const RAM_PAGES: u32 = 8;
const STATE: &[u8] = b"registers";

type Ram = Vec<[u8; PAGE_SIZE]>;

struct PrimaryEnd {
    pipeline: Pipeline,
    book: DirtyBook,
    encoder: Encoder,
    chain: Chain,
    ram: Ram,
    /// The guest was reset since the last seal.
    reset: bool,
    /// What the guest was at each seal.
    was: BTreeMap<Epoch, Ram>,
    /// Written to the bulk connection, and not yet read.
    wire: Vec<u8>,
    sessions: u64,
    now: u64,
}

struct BackupEnd {
    brain: Backup,
    assembly: Assembly,
    chain: Chain,
    bytes: FrameBuffer,
    image: Ram,
    /// The guest was reset in the checkpoint that arrives.
    reset: bool,
    acks: Vec<u8>,
}

/// What the guest begins with.
fn boot() -> Ram {
    let mut ram = vec![[0; PAGE_SIZE]; RAM_PAGES as usize];
    ram[1].fill(7);
    ram
}

fn apply(image: &mut Ram, page: Page, content: Content<'_>) {
    let target = &mut image[page.0 as usize];
    match content {
        Content::Zero => target.fill(0),
        Content::Delta(delta) => delta.apply(target),
        Content::Raw(raw) => *target = *raw,
    }
}

impl PrimaryEnd {
    fn new() -> Self {
        let timing = Timing::default();
        let pipeline = Pipeline::start_shut(permits::first(), Policy::new(&timing), Moment(0))
            .in_line(Nonce::new(1).unwrap(), Ancestry::none());
        Self {
            pipeline,
            book: DirtyBook::new(RAM_PAGES),
            encoder: Encoder::new(
                RAM_PAGES,
                EncoderSettings { copies: 3, ..EncoderSettings::default() },
            ),
            chain: Chain::new(Session::new(1).unwrap()),
            ram: boot(),
            reset: false,
            was: BTreeMap::new(),
            wire: Vec::new(),
            sessions: 0,
            now: 1,
        }
    }

    fn write(&mut self, page: u32, at: usize, value: u8) {
        self.ram[page as usize][at] = value;
        let mut log = PageSet::new(RAM_PAGES);
        log.insert(Page(page));
        self.book.owe(&log);
    }

    /// As the engine does it: no page is owed for it.
    fn reset(&mut self) {
        self.ram = boot();
        self.reset = true;
    }

    fn stage(&self, pages: &PageSet) -> Staging {
        let mut staging = Staging::new(RAM_PAGES as usize);
        for page in pages.iter() {
            *staging.push(page).unwrap() = self.ram[page.0 as usize];
        }
        staging
    }

    /// Writes the batches of `staging` to the wire, header and parts as they are; how many pages it sent.
    fn send_pages(&mut self, kind: Kind, staging: &Staging) -> u32 {
        let mut pages = 0;
        let mut run = self.encoder.encode(staging);
        while let Some(batch) = run.next_batch() {
            let (header, checksum) = head(kind, batch.parts());
            self.chain.absorb(kind, checksum);
            self.wire.extend_from_slice(&header);
            batch.parts().for_each(|part| self.wire.extend_from_slice(part));
            pages += batch.pages();
        }
        pages
    }

    /// Greets, attaches, and sends one round of the sync.
    fn connect(&mut self, backup: &mut BackupEnd) {
        self.sessions += 1;
        let session = Session::new(self.sessions).unwrap();
        let welcome = backup.accept(&Hello {
            vm: VmName::new("vm").unwrap(),
            session,
            features: Features::OURS,
            id: VmId::new(1).unwrap(),
            nonce: Nonce::new(1).unwrap(),
            ancestry: self.pipeline.ancestry().clone(),
            term: Term::FIRST,
            ram_pages: RAM_PAGES,
            timing: Timing::default(),
            acks_to: None,
            shape: Vec::new(),
            cpu: Vec::new(),
        });
        self.pipeline.handle_welcome(session, &welcome).unwrap();
        self.book.owe_everything();
        self.reset = false;
        self.encoder.forget();
        self.chain = Chain::new(session);
        self.wire.clear();
        Attach { session }.encode(&mut self.wire);
        let mut taken = PageSet::new(RAM_PAGES);
        self.book.take_for_sync(&mut taken);
        let staging = self.stage(&taken);
        self.send_pages(Kind::SyncPages, &staging);
        assert_eq!(self.pipeline.handle_sync_round(0), SyncNext::Seal);
    }

    fn checkpoint(&mut self) {
        self.now += 1;
        self.pipeline.handle_gate_filling(Moment(self.now));
        let Sealed { session, checkpoint, predecessor, .. } = self.pipeline.seal(Moment(self.now));
        let epoch = checkpoint.epoch();
        self.was.insert(epoch, self.ram.clone());
        let reset = std::mem::take(&mut self.reset);
        if reset {
            self.encoder.forget();
        }
        let captured = self.book.capture(epoch).clone();
        let staging = self.stage(&captured);
        let begin = Begin {
            session,
            term: checkpoint.term(),
            epoch,
            predecessor,
            predecessor_digest: self.chain.digest(),
            sent: Moment(self.now),
            pages_max: u32::try_from(staging.len()).unwrap(),
            state_len: u32::try_from(STATE.len()).unwrap(),
            reset,
        };
        let checksum = begin.encode(&mut self.wire);
        self.chain.absorb(Kind::Begin, checksum);
        let pages = self.send_pages(Kind::Pages, &staging);
        let (header, checksum) = head(Kind::State, std::iter::once(STATE));
        self.chain.absorb(Kind::State, checksum);
        self.wire.extend_from_slice(&header);
        self.wire.extend_from_slice(STATE);
        let digest = self.chain.digest();
        self.pipeline.handle_sent(session, epoch, digest);
        End { epoch, pages, digest }.encode(&mut self.wire);
    }

    fn read_acks(&mut self, bytes: &[u8]) {
        let mut buffer = FrameBuffer::new(Lane::BulkToPrimary);
        for chunk in bytes.chunks(HEADER_LEN) {
            buffer.space()[..chunk.len()].copy_from_slice(chunk);
            buffer.filled(chunk.len());
            while let Some(frame) = buffer.next_frame().unwrap() {
                let BulkToPrimary::Ack(ack) = BulkToPrimary::decode(&frame).unwrap();
                self.now += 1;
                let now = Moment(self.now);
                let acked = self.pipeline.handle_ack(now, &ack, |_, _| {}).unwrap().unwrap();
                self.book.commit(ack.epoch);
                assert_eq!(acked.committed.stamp().epoch(), self.pipeline.acked());
                self.pipeline.handle_flushed(now).expect("something new is committed");
            }
        }
    }

    fn lose_session(&mut self) {
        self.pipeline.handle_session_lost();
        self.book.put_back();
        self.wire.clear();
    }
}

impl BackupEnd {
    fn new() -> Self {
        Self {
            brain: Backup::new(Instance::new(2).unwrap(), Known::default()),
            assembly: Assembly::new(RAM_PAGES),
            chain: Chain::new(Session::new(1).unwrap()),
            bytes: FrameBuffer::new(Lane::BulkToBackup),
            // As memory that was used before: a session must not rely on what it finds.
            image: vec![[0xee; PAGE_SIZE]; RAM_PAGES as usize],
            reset: false,
            acks: Vec::new(),
        }
    }

    fn accept(&mut self, hello: &Hello) -> remus::wire::Welcome {
        let welcome = self.brain.handle_hello(hello).unwrap();
        self.assembly.new_session();
        self.chain = Chain::new(hello.session);
        self.bytes = FrameBuffer::new(Lane::BulkToBackup);
        welcome
    }

    /// Reads `bytes` as the shell does; after each commit the image must be what the guest `was`.
    fn read(&mut self, mut bytes: &[u8], was: &BTreeMap<Epoch, Ram>) {
        while !bytes.is_empty() {
            let space = self.bytes.space();
            let len = bytes.len().min(space.len());
            space[..len].copy_from_slice(&bytes[..len]);
            self.bytes.filled(len);
            bytes = &bytes[len..];
            self.take_frames(was);
        }
    }

    fn take_frames(&mut self, was: &BTreeMap<Epoch, Ram>) {
        let Self { brain, assembly, chain, bytes, image, reset, acks } = self;
        while let Some(frame) = bytes.next_frame().unwrap() {
            match BulkToBackup::decode(&frame).unwrap() {
                BulkToBackup::Attach(attach) => brain.handle_attach(&attach).unwrap(),
                BulkToBackup::BootPages(_) | BulkToBackup::BootState(_) => {
                    unreachable!("both know the boot image")
                }
                BulkToBackup::SyncPages(body) => {
                    brain.handle_sync_pages().unwrap();
                    let batch = assembly.sync_batch(body).unwrap();
                    batch.iter().for_each(|(page, content)| apply(image, page, content));
                    chain.absorb_frame(&frame);
                }
                BulkToBackup::Begin(begin) => {
                    brain.handle_begin(&begin, chain.digest()).unwrap();
                    assembly.begin(begin.pages_max, begin.state_len).unwrap();
                    *reset = begin.reset;
                    chain.absorb_frame(&frame);
                }
                BulkToBackup::Pages(body) => {
                    brain.handle_part().unwrap();
                    assembly.add_pages(body).unwrap();
                    chain.absorb_frame(&frame);
                }
                BulkToBackup::State(body) => {
                    brain.handle_part().unwrap();
                    assembly.add_state(body).unwrap();
                    chain.absorb_frame(&frame);
                }
                BulkToBackup::End(end) => {
                    let arrived = assembly.arrived();
                    let ack = brain.handle_end(Moment(1), &end, chain.digest(), arrived).unwrap();
                    ack.encode(acks);
                    if *reset {
                        *image = boot();
                    }
                    for batch in assembly.batches() {
                        batch.iter().for_each(|(page, content)| apply(image, page, content));
                    }
                    assert_eq!(assembly.state(), STATE);
                    assert!(*image == was[&end.epoch], "the image of epoch {} differs", end.epoch);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Write {
        page: u32,
        at: usize,
        value: u8,
    },
    Seal,
    /// So much of what was written arrives, in thousandths.
    Arrives {
        share: usize,
    },
    AcksArrive,
    Reset,
    /// The connection breaks, whatever is in it, and the next session begins.
    Reconnect,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..RAM_PAGES, 0..PAGE_SIZE, 0u8..3).prop_map(|(page, at, value)| Event::Write { page, at, value }),
        3 => Just(Event::Seal),
        3 => (1usize..=1000).prop_map(|share| Event::Arrives { share }),
        3 => Just(Event::AcksArrive),
        1 => Just(Event::Reset),
        1 => Just(Event::Reconnect),
    ];
    proptest::collection::vec(event, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_commit_is_the_guest_as_it_was_at_its_seal(events in events()) {
        let (mut primary, mut backup) = (PrimaryEnd::new(), BackupEnd::new());
        primary.connect(&mut backup);
        for event in events {
            match event {
                Event::Write { page, at, value } => primary.write(page, at, value),
                Event::Seal if primary.pipeline.in_flight() < 2 => primary.checkpoint(),
                Event::Seal => {}
                Event::Arrives { share } => {
                    let rest = primary.wire.split_off(primary.wire.len() * share / 1000);
                    let arrived = std::mem::replace(&mut primary.wire, rest);
                    backup.read(&arrived, &primary.was);
                }
                Event::AcksArrive => primary.read_acks(&std::mem::take(&mut backup.acks)),
                Event::Reset => primary.reset(),
                Event::Reconnect => {
                    primary.lose_session();
                    backup.brain.handle_session_lost();
                    backup.acks.clear();
                    primary.connect(&mut backup);
                }
            }
        }
    }
}
