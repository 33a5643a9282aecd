//! Copying a page past the cache.
//!
//! A pause copies pages that nobody on this CPU reads again soon. Non-temporal stores write them without
//! reading the destination first and without evicting the guest's working set: 0.35 to 0.4 us a page where
//! `memcpy` takes 0.6.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128, _mm256_loadu_si256,
    _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
};
use std::marker::PhantomData;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checkpoint::{PAGE_SIZE, Page, StagedPage};

/// The widest streaming copy that this CPU has.
#[derive(Clone, Copy)]
pub(super) struct PageCopier(unsafe fn(*mut u8, *const u8));

impl PageCopier {
    pub(super) fn detect() -> Self {
        if is_x86_feature_detected!("avx512f") {
            Self(copy_avx512)
        } else if is_x86_feature_detected!("avx2") {
            Self(copy_avx2)
        } else {
            Self(copy_sse2)
        }
    }

    /// Copies the page at `from`. The stores are ordered by [`finish`](Self::finish) only.
    ///
    /// # Safety
    /// `from` must be the first byte of a mapped page of guest RAM. It may be written meanwhile (by the
    /// guest, in live copies): then the copy is of no particular instant.
    pub(super) unsafe fn copy(self, to: &mut [u8; PAGE_SIZE], from: *const u8) {
        let to = to.as_mut_ptr();
        assert!(to.addr().is_multiple_of(64), "streaming stores need aligned staging");
        // SAFETY: `to` is a whole page that is exclusively ours and aligned as just checked, `from` is
        // readable as the caller promises, and the CPU feature was detected when the pointer was chosen.
        unsafe { (self.0)(to, from) }
    }

    /// Orders the copies before whatever hands them to another thread.
    pub(super) fn finish(self) {
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { _mm_sfence() };
    }
}

/// Pages to copy and where to, in strides that threads take one after another.
pub(super) struct Strides<'a> {
    pages: &'a [Page],
    copies: *mut StagedPage,
    next: AtomicUsize,
    _copies: PhantomData<&'a mut [StagedPage]>,
}

// SAFETY: what the pointer leads to is reached through `next` alone, which hands each part of it to one thread.
unsafe impl Sync for Strides<'_> {}

/// Pages that are taken at once: some 10 us.
const STRIDE: usize = 32;

impl<'a> Strides<'a> {
    pub(super) fn new(pages: &'a [Page], copies: &'a mut [StagedPage]) -> Self {
        assert_eq!(pages.len(), copies.len(), "a copy for each page");
        let copies = copies.as_mut_ptr();
        Self { pages, copies, next: AtomicUsize::new(0), _copies: PhantomData }
    }

    /// Returns the next stride, which no other thread has.
    pub(super) fn next(&self) -> Option<(&'a [Page], &'a mut [StagedPage])> {
        let at = self.next.fetch_add(STRIDE, Ordering::Relaxed);
        let pages = self.pages.get(at..)?.chunks(STRIDE).next()?;
        // SAFETY: the copies are as many as the pages, borrowed for 'a, and no number is handed out twice.
        let copies = unsafe { slice::from_raw_parts_mut(self.copies.add(at), pages.len()) };
        Some((pages, copies))
    }
}

/// # Safety
/// Both ends are whole pages, `to` 64-byte aligned; the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn copy_avx512(to: *mut u8, from: *const u8) {
    for at in (0..PAGE_SIZE).step_by(256) {
        // SAFETY: four vectors of 64 bytes from `at`, a multiple of 256 below the size of both pages.
        unsafe {
            let (from, to) = (from.add(at), to.add(at));
            let a = _mm512_loadu_si512(from.cast());
            let b = _mm512_loadu_si512(from.add(64).cast());
            let c = _mm512_loadu_si512(from.add(128).cast());
            let d = _mm512_loadu_si512(from.add(192).cast());
            _mm512_stream_si512(to.cast(), a);
            _mm512_stream_si512(to.add(64).cast(), b);
            _mm512_stream_si512(to.add(128).cast(), c);
            _mm512_stream_si512(to.add(192).cast(), d);
        }
    }
}

/// # Safety
/// Both ends are whole pages, `to` 32-byte aligned; the CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn copy_avx2(to: *mut u8, from: *const u8) {
    for at in (0..PAGE_SIZE).step_by(128) {
        // SAFETY: four vectors of 32 bytes from `at`, a multiple of 128 below the size of both pages.
        unsafe {
            let (from, to) = (from.add(at).cast::<__m256i>(), to.add(at).cast::<__m256i>());
            let a = _mm256_loadu_si256(from);
            let b = _mm256_loadu_si256(from.add(1));
            let c = _mm256_loadu_si256(from.add(2));
            let d = _mm256_loadu_si256(from.add(3));
            _mm256_stream_si256(to, a);
            _mm256_stream_si256(to.add(1), b);
            _mm256_stream_si256(to.add(2), c);
            _mm256_stream_si256(to.add(3), d);
        }
    }
}

/// # Safety
/// Both ends are whole pages, `to` 16-byte aligned.
unsafe fn copy_sse2(to: *mut u8, from: *const u8) {
    for at in (0..PAGE_SIZE).step_by(64) {
        // SAFETY: four vectors of 16 bytes from `at`, a multiple of 64 below the size of both pages; every
        // x86-64 CPU has SSE2.
        unsafe {
            let (from, to) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
            let a = _mm_loadu_si128(from);
            let b = _mm_loadu_si128(from.add(1));
            let c = _mm_loadu_si128(from.add(2));
            let d = _mm_loadu_si128(from.add(3));
            _mm_stream_si128(to, a);
            _mm_stream_si128(to.add(1), b);
            _mm_stream_si128(to.add(2), c);
            _mm_stream_si128(to.add(3), d);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Staging;

    #[test]
    fn strides_cover_every_page_once_whoever_takes_them() {
        let pages: Vec<_> = (0..1000).map(Page).collect();
        let mut staging = Staging::new(pages.len());
        pages.iter().for_each(|page| staging.push(*page).unwrap().fill(0));
        let (listed, copies) = staging.from_mut(0);
        let strides = Strides::new(listed, copies);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some((pages, copies)) = strides.next() {
                        for (page, copy) in pages.iter().zip(copies) {
                            let bytes = copy.bytes_mut();
                            bytes[..4].copy_from_slice(&page.0.to_le_bytes());
                            bytes[4] += 1;
                        }
                    }
                });
            }
        });
        for (page, copy) in staging.iter() {
            assert_eq!((&copy[..4], copy[4]), (&page.0.to_le_bytes()[..], 1));
        }
    }

    #[test]
    fn every_width_copies_every_byte() {
        let from: Vec<u8> = (0..PAGE_SIZE).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let mut copiers = vec![PageCopier(copy_sse2), PageCopier::detect()];
        if is_x86_feature_detected!("avx2") {
            copiers.push(PageCopier(copy_avx2));
        }
        for copier in copiers {
            let mut staging = Staging::new(1);
            // SAFETY: `from` is a page long.
            unsafe { copier.copy(staging.push(Page(0)).unwrap(), from.as_ptr()) };
            copier.finish();
            assert_eq!(staging.iter().next().unwrap().1.as_slice(), from);
        }
    }
}
