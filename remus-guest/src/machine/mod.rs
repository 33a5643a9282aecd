//! The machine: from the VMM's jump to the entry point to a server that sleeps when it has nothing to do.
//!
//! Everything but a few instructions runs in ring 3 with interrupts off. Where KVM has no hardware
//! virtualization below it, ring 0 is emulated, slowly and not wholly, while ring 3 is the machine itself;
//! where it has, nothing is lost. [`boot`] is what remains in ring 0.
//!
//! ```text
//! boot     entry, ring-0 stub, descriptor tables          serial  the log, and the end of the machine
//! crash    exceptions and panics                          apic    interrupts, the wake-up timer, sleep
//! clock    time                                           heap    the allocator, and how RAM is shared out
//! queue    one split virtqueue                            net     the virtio-net device
//! others   the other CPUs, which only work
//! ```
//!
//! Interrupts only wake: no handler does work, and none is told what happened. Each round of [`run`] looks at
//! the rings. While there is work the guest polls and asks for no interrupts; an exit costs as much as
//! hundreds of requests.

mod apic;
mod boot;
mod clock;
mod crash;
mod heap;
mod net;
mod others;
mod queue;
mod serial;

use core::net::Ipv4Addr;
use remus_abi::boot::{BOOT_MAGIC, BootInfo};
use remus_guest::beacon::Sender;
use remus_guest::node::{Memory, Node};
use remus_guest::options::Options;
use remus_guest::server::Server;

use self::apic::Apic;
use self::clock::Clock;
use self::net::Nic;
use self::serial::println;

/// Work between looks at the rings: what it adds to a request's latency at most.
const QUANTUM_NS: u64 = 50_000;
/// The guest looks at the rings for so long before it sleeps: about what sleep and wake-up cost.
const LINGER_NS: u64 = 50_000;

/// Runs the guest. Ring 3, on the stack that `boot` gave it; called once.
extern "C" fn start(info: *const BootInfo) -> ! {
    boot::fill_interrupt_table();
    serial::mask_legacy_interrupts();
    // SAFETY: the boot contract: `rdi` held the address of a BootInfo, and the memory below GUEST_BASE in
    // which it lies is not written while the guest runs.
    let info = unsafe { info.read() };
    assert!(info.magic == BOOT_MAGIC, "the boot block is not one");
    assert!(info.devices >= 1, "there is no network device");
    // SAFETY: `cmdline` and `cmdline_len` describe bytes below GUEST_BASE, which stay as they are.
    let cmdline = unsafe {
        core::slice::from_raw_parts(info.cmdline as *const u8, info.cmdline_len as usize)
    };
    let options = match Options::parse(cmdline) {
        Ok(options) => options,
        Err(e) => panic!("command line: {e:?}"),
    };
    let ram = heap::share_out(&info);
    static CLOCK: clock::Shared = clock::Shared::new();
    let mut clock = Clock::start(&CLOCK);
    let now_ns = clock.now_ns();
    let mut nic = Nic::new(0);
    let apic = Apic::start();
    apic::route(0);

    let vcpus = u8::try_from(info.vcpus.max(1)).expect("an APIC's number is a byte");
    let memory =
        Memory::share(ram.heap_bytes.saturating_sub(boot::bytes_of_others(usize::from(vcpus) - 1)));
    let arena_bytes = ram.arena.len();
    let crew = others::start(vcpus, ram.arena);
    let mut node = Node::new(memory, crew, options.port, now_ns);
    let mac = nic.mac();
    let mut server = Server::new(&mut nic, mac, &options, &memory, now_ns);
    println!(
        "remus-guest: {}/{} port {}, {vcpus} vCPUs, heap {} KiB, arena {} KiB",
        options.address,
        options.prefix_len,
        options.port,
        ram.heap_bytes >> 10,
        arena_bytes >> 10
    );
    run(&mut server, &mut node, &mut nic, apic, &mut clock, options.address, vcpus)
}

fn run(
    server: &mut Server,
    node: &mut Node<'_>,
    nic: &mut Nic,
    mut apic: Apic,
    clock: &mut Clock,
    address: Ipv4Addr,
    vcpus: u8,
) -> ! {
    let sender = Sender { mac: nic.mac(), ip: address.octets() };
    let mut server_due_ns = Some(0);
    let mut linger_until_ns = 0;
    loop {
        let now_ns = clock.now_ns();
        let server_wants = |now_ns, nic: &Nic, due_ns: Option<u64>| {
            // Frames wait, or a deadline has passed; but with no room to send, neither can be acted upon.
            !nic.is_full() && (nic.has_frames() || due_ns.is_some_and(|due_ns| due_ns <= now_ns))
        };
        if server_wants(now_ns, nic, server_due_ns) {
            let polled = server.poll(now_ns, nic, node);
            server_due_ns = polled.due_ns;
            if let Some(how) = polled.leave {
                nic.kick();
                serial::power_off(how);
            }
            if node.work().has_news() {
                others::wake(vcpus);
            }
            linger_until_ns = now_ns + LINGER_NS;
        }
        if let Some(frames) = node.beacon().frames(now_ns, &sender) {
            // A frame that finds no room is lost, like any frame.
            frames.iter().for_each(|frame| nic.send(frame.bytes()));
        }
        node.stats().doorbells += nic.kick();
        node.work().run(QUANTUM_NS, || clock.now_ns());

        let now_ns = clock.now_ns();
        let deadline_ns = if nic.is_full() { None } else { server_due_ns };
        let wake_ns = [deadline_ns, node.due_ns(now_ns)].into_iter().flatten().min();
        let idle = !server_wants(now_ns, nic, server_due_ns)
            && wake_ns.is_none_or(|wake_ns| wake_ns > now_ns)
            && now_ns >= linger_until_ns;
        if idle && nic.may_sleep() {
            node.stats().sleeps += 1;
            apic.sleep(now_ns, wake_ns);
            nic.is_awake();
        }
    }
}
