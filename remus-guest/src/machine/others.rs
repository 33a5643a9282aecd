//! The other CPUs: how they get what they work with, and what they do.
//!
//! They serve nobody. Each does its part of the work, and sleeps while there is none: until the boot CPU wakes it
//! after an order, or its own timer does when touches are due. An interrupt that comes before the sleep has begun
//! ends it at once, since interrupts are on in the sleep only; so an order is never slept through.
//!
//! They allocate nothing: the heap is the boot CPU's.

use alloc::boxed::Box;
use alloc::vec::Vec;
use remus_guest::crew::{Crew, Desk, Helper, pieces};

use super::apic::{self, Apic};
use super::clock::{self, Clock};
use super::{QUANTUM_NS, boot};

/// What another CPU is started with.
pub(super) struct Seat {
    helper: Helper<'static>,
    clock: clock::Shared,
}

/// Starts all CPUs but this one, and makes it their boss. Does not wait for them.
///
/// # Panics
/// When there is not enough RAM for so many.
pub(super) fn start(vcpus: u8, arena: &'static mut [u8]) -> Crew<'static> {
    let mut pieces = pieces(arena, vcpus.into());
    let own = pieces.next().expect("a piece for each CPU");
    let mut desks = Vec::new();
    let mut seats = Vec::new();
    for piece in pieces {
        let desk: &'static Desk = Box::leak(Box::default());
        let seat = Seat { helper: Helper::new(piece, desk), clock: clock::Shared::new() };
        desks.push(desk);
        seats.push(Box::into_raw(Box::new(seat)) as u64);
    }
    boot::prepare_others(&seats);
    (1..vcpus).for_each(apic::start_cpu);
    Crew::new(own, desks)
}

/// Wakes all CPUs but this one.
pub(super) fn wake(vcpus: u8) {
    (1..vcpus).for_each(apic::wake_cpu);
}

/// Another CPU. Ring 3, on a stack of its own; called once on each, with a seat of its own.
pub(super) extern "C" fn help(seat: *mut Seat) -> ! {
    // SAFETY: `start` made the seat, gave its address to this CPU alone, and keeps no way to it. It is never freed.
    let Seat { helper, clock } = unsafe { &mut *seat };
    let mut clock = Clock::start(clock);
    let mut apic = Apic::start();
    helper.arrive();
    loop {
        helper.run(QUANTUM_NS, || clock.now_ns());
        let now_ns = clock.now_ns();
        let wake_ns = helper.due_ns(now_ns);
        if wake_ns.is_none_or(|wake_ns| wake_ns > now_ns) {
            apic.sleep(now_ns, wake_ns);
        }
    }
}
