//! All that lies between a guest's memory and its backup's, over hundreds of epochs: dirty log, books, hot set, staging,
//! encoder, assembly. The two are compared whole.

use std::time::Duration;

use remus::checkpoint::{
    Assembly, Content, DirtyBook, Encoder, EncoderSettings, HotSet, MachineState, PAGE_SIZE, Page,
    PageSet, Staging,
};
use remus::machine::{Memory, Shape};
use remus_abi::Epoch;

use super::machine::{SHAPE, alone, prepared, serve, started};
use super::small_guest::{self, After, Work};

const EPOCHS: u64 = 400;
/// A page that stays as it is for so many epochs is protected again.
const COOL_AFTER: u8 = 4;
/// The work has more: some of it is protected in every epoch, and faults.
const HOT_MAX: usize = 400;
const WORK: Work = Work { vcpus: 1, pages: 600, spin: 200, after: After::GoOn };

#[test]
fn the_backups_memory_is_the_guests_however_its_hot_set_cools_overflows_and_moves() {
    let _alone = alone();
    for vcpus in [1, 2] {
        let (shape, work) = (Shape { vcpus, ..SHAPE }, Work { vcpus, ..WORK });
        let (mut machine, cpu) = started(&shape, work);
        let backup = prepared(&shape, &cpu);
        let pages = machine.memory().layout().pages();
        let (mut book, mut hot) = (DirtyBook::new(pages), HotSet::new(pages, COOL_AFTER));
        let (mut harvest, mut cool) = (PageSet::new(pages), PageSet::new(pages));
        let (mut encoder, mut assembly) =
            (Encoder::new(pages, EncoderSettings::default()), Assembly::new(pages));
        let (mut staging, mut state) = (Staging::new(pages as usize), MachineState::default());
        machine.track_dirty(true).unwrap();
        machine.harvest_and_clear_live(&mut harvest).unwrap();
        book.owe_everything();
        let (mut cooled, mut overflowed, mut compared) = (0, 0, 0);
        for n in 1..=EPOCHS {
            assert_eq!(serve(&mut machine, Duration::from_millis(1)), None);
            if n % 30 == 0 {
                let first = u32::try_from(n / 30 % 3 * 300).unwrap();
                small_guest::set_first(machine.memory(), Page(small_guest::FIRST.0 + first));
            }
            let mut paused = machine.pause().unwrap();
            paused.capture(&mut state).unwrap();
            paused.harvest(&mut harvest).unwrap();
            book.owe(&harvest);
            let epoch = Epoch::new(n).unwrap();
            let captured = book.capture(epoch);
            staging.clear();
            paused.copy(captured.iter(), &mut staging).unwrap();
            let staying = hot.poll_cool(captured, &mut cool, HOT_MAX);
            assert!(staying <= HOT_MAX && staying + cool.len() == captured.len());
            cooled += cool.len();
            overflowed += usize::from(staying == HOT_MAX);
            paused.reprotect(&cool).unwrap();
            let digest = (n % 20 == 0).then(|| paused.memory().digest());
            drop(paused);

            carry(&mut encoder, &staging, &mut assembly, backup.memory());
            hot.handle_verdicts(encoder.verdicts());
            book.commit(epoch);
            if let Some(digest) = digest {
                assert_eq!(backup.memory().digest(), digest, "{vcpus} vCPUs, epoch {n}");
                compared += 1;
            }
        }
        assert_eq!(compared, 20);
        assert!(cooled > 1000 && overflowed > 10, "{cooled} cooled, {overflowed} overflowed");
    }
}

/// What sender and backup do with a checkpoint.
fn carry(encoder: &mut Encoder, staging: &Staging, assembly: &mut Assembly, to: &Memory) {
    assembly.begin(u32::try_from(staging.len()).unwrap(), 0).unwrap();
    let mut run = encoder.encode(staging);
    while let Some(batch) = run.next_batch() {
        let body: Vec<u8> = batch.parts().flatten().copied().collect();
        assembly.add_pages(&body).unwrap();
    }
    for (page, content) in assembly.batches().flat_map(|batch| batch.iter()) {
        let mut bytes = [0; PAGE_SIZE];
        match content {
            Content::Zero => {}
            Content::Raw(raw) => bytes = *raw,
            Content::Delta(delta) => {
                to.read_page(page, &mut bytes).unwrap();
                delta.apply(&mut bytes);
            }
        }
        to.write_page(page, &bytes).unwrap();
    }
}
