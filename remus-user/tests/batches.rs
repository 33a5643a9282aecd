//! Encoder and assembly together, over frames as they are on the wire.

use proptest::prelude::*;

use remus::{
    checkpoint::{
        Assembly, BatchError, Compression, Content, Encoder, EncoderSettings, PAGE_SIZE, Page,
        Staging,
    },
    wire::{FrameBuffer, Kind, Lane, head},
};

const PAGES: u32 = 8;

type Ram = Vec<[u8; PAGE_SIZE]>;

/// Returns the frames of a checkpoint of `pages`, as bytes.
fn sent(encoder: &mut Encoder, ram: &Ram, pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut staging = Staging::new(PAGES as usize);
    for page in pages {
        *staging.push(Page(page)).unwrap() = ram[page as usize];
    }
    let (mut run, mut bytes) = (encoder.encode(&staging), Vec::new());
    while let Some(batch) = run.next_batch() {
        bytes.extend(head(Kind::Pages, batch.parts()).0);
        batch.parts().for_each(|part| bytes.extend_from_slice(part));
    }
    bytes
}

/// Lets `bytes`, a whole checkpoint or the beginning of one, arrive in the assembly.
fn arrives(assembly: &mut Assembly, bytes: &[u8]) -> Result<(), BatchError> {
    assembly.begin(PAGES, 0).unwrap();
    let mut frames = FrameBuffer::new(Lane::BulkToBackup);
    for chunk in bytes.chunks(1 << 14) {
        frames.space()[..chunk.len()].copy_from_slice(chunk);
        frames.filled(chunk.len());
        while let Some(frame) = frames.next_frame().unwrap() {
            assembly.add_pages(frame.body)?;
        }
    }
    Ok(())
}

fn commit(assembly: &Assembly, image: &mut Ram) {
    for (page, content) in assembly.batches().flat_map(|batch| batch.iter()) {
        let target = &mut image[page.0 as usize];
        match content {
            Content::Zero => target.fill(0),
            Content::Raw(raw) => *target = *raw,
            Content::Delta(delta) => delta.apply(target),
        }
    }
}

fn settings() -> impl Strategy<Value = EncoderSettings> {
    let compression =
        prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)];
    (1u32..=PAGES, compression)
        .prop_map(|(copies, compression)| EncoderSettings { copies, compression })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_session_that_ends_at_any_byte_leaves_no_base_for_the_next(
        settings in settings(),
        writes in proptest::collection::vec((0..PAGES, 0..PAGE_SIZE, any::<u8>()), 1..60),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut ram, mut image) = (vec![[3; PAGE_SIZE]; PAGES as usize], vec![[9; PAGE_SIZE]; PAGES as usize]);
        let (mut encoder, mut assembly) = (Encoder::new(PAGES, settings), Assembly::new(PAGES));
        arrives(&mut assembly, &sent(&mut encoder, &ram, 0..PAGES)).unwrap();
        commit(&assembly, &mut image);
        for writes in writes.chunks(10) {
            writes.iter().for_each(|(page, at, value)| ram[*page as usize][*at] = *value);
            // The last of it does not arrive, and nothing of it is committed; the guest goes on.
            let bytes = sent(&mut encoder, &ram, 0..PAGES);
            arrives(&mut assembly, &bytes[..cut.index(bytes.len() + 1)]).unwrap();
            ram[1][7] = ram[1][7].wrapping_add(1);

            // A sender that went on as if nothing had happened is refused its first delta.
            let (mut fresh, bytes) = (Assembly::new(PAGES), sent(&mut encoder, &ram, 0..PAGES));
            if let Err(e) = arrives(&mut fresh, &bytes) {
                prop_assert!(matches!(e, BatchError::NoBase(_)), "{e}");
            }
            encoder.forget();
            assembly.new_session();
            arrives(&mut assembly, &sent(&mut encoder, &ram, 0..PAGES)).unwrap();
            prop_assert!(assembly.arrived().covers_ram);
            commit(&assembly, &mut image);
            prop_assert_eq!(&image, &ram);
        }
    }
}

#[test]
fn sparse_writes_cost_a_tenth_of_their_pages_at_most() {
    let mut ram = vec![[3; PAGE_SIZE]; PAGES as usize];
    let mut encoder = Encoder::new(PAGES, EncoderSettings::default());
    sent(&mut encoder, &ram, 0..PAGES);
    for (n, page) in ram.iter_mut().enumerate() {
        page[100 * n..100 * n + 64].fill(7);
    }
    let bytes = sent(&mut encoder, &ram, 0..PAGES).len();
    assert!(bytes * 10 <= PAGES as usize * PAGE_SIZE, "{bytes} bytes");
}
