//! The port as Linux's driver uses it.

use std::io::Read;
use std::os::fd::OwnedFd;

use super::*;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCRATCH: u8 = 7;
const RECEIVE_INTERRUPT: u8 = 1;
const TRANSMIT_INTERRUPT: u8 = 2;
const NO_INTERRUPT: u8 = 1;

fn port() -> (Arc<SerialPort>, EventFd) {
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    (Arc::new(SerialPort::new(line.try_clone().unwrap())), line)
}

impl SerialPort {
    fn get(&self, register: u8) -> u8 {
        let mut byte = [0];
        self.port_in(register, &mut byte);
        byte[0]
    }

    fn set(&self, register: u8, value: u8) {
        self.port_out(register, &[value]);
    }
}

#[test]
fn a_driver_finds_a_16550a() {
    let (port, _) = port();
    // Linux's autoconfig: IER can be written, the scratch register keeps what it is given, loopback shows the modem's
    // outputs as its inputs, and the FIFO is on.
    port.set(IER, 0x0f);
    assert_eq!(port.get(IER), 0x0f);
    port.set(IER, 0);
    port.set(SCRATCH, 0xa5);
    assert_eq!(port.get(SCRATCH), 0xa5);
    port.set(MCR, 0x10 | 0x0a);
    assert_eq!(port.get(MSR) & 0xf0, 0x90);
    port.set(MCR, 0);
    assert_eq!(port.get(IIR) >> 6, 3);
    // The divisor is behind the latch.
    port.set(LCR, 0x80);
    port.set(DATA, 1);
    port.set(LCR, 3);
    let mut state = SerialState::default();
    port.save(&mut state);
    assert_eq!((state.divisor, state.line_control), (1, 3));
    assert_eq!(port.get(LSR), 0x60, "ready to send");
}

#[test]
fn what_is_said_comes_out_raw_and_asks_for_more_by_interrupt() {
    let (port, line) = port();
    let (mut reader, writer) = io::pipe().unwrap();
    let console = Console(Arc::clone(&port));
    let attached = console.attach("a pipe", File::from(OwnedFd::from(writer))).unwrap();
    port.set(IER, TRANSMIT_INTERRUPT);
    assert_eq!(line.read().unwrap(), 1, "the transmitter is empty");
    assert_eq!(port.get(IIR) & 0x0f, 2);
    for byte in b"a\x1b[31m\n" {
        port.set(DATA, *byte);
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(port.get(IIR) & 0x0f, 2);
    }
    assert_eq!(port.get(IIR) & 0x0f, NO_INTERRUPT);
    port.port_out(DATA, b"string");
    console.detach(attached);
    port.set(DATA, b'x');
    let mut said = Vec::new();
    reader.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"a\x1b[31m\nstring");
}

#[test]
fn what_is_typed_waits_for_the_guest_and_comes_in_order() {
    let (port, line) = port();
    let console = Console(Arc::clone(&port));
    port.set(IER, RECEIVE_INTERRUPT);
    let typed: Vec<u8> = (0..TYPED_MAX + 1000).map(|n| n.to_le_bytes()[0]).collect();
    // What the port itself takes makes room for more.
    let taken = console.type_in(&typed);
    assert_eq!(taken, TYPED_MAX);
    let taken = taken + console.type_in(&typed[taken..]);
    assert!(taken > TYPED_MAX && taken < typed.len());
    assert_eq!(line.read().unwrap(), 1);
    let mut read = Vec::new();
    while port.get(LSR) & 1 != 0 {
        read.push(port.get(DATA));
    }
    assert_eq!(read, typed[..taken]);
    assert_eq!(console.type_in(b"x"), 1, "there is room again");
    line.read().unwrap();
    assert_eq!(port.get(DATA), b'x');
}

#[test]
fn a_port_goes_on_elsewhere_with_what_it_has_received_and_owes() {
    let (port, line) = port();
    port.set(LCR, 3);
    port.set(IER, RECEIVE_INTERRUPT);
    Console(Arc::clone(&port)).type_in(b"hello");
    assert_eq!(line.read().unwrap(), 1);
    let mut state = SerialState::default();
    port.save(&mut state);
    assert_eq!(state.received, b"hello");

    let (elsewhere, line) = self::port();
    elsewhere.restore(&state).unwrap();
    assert_eq!(line.read().unwrap(), 1, "the interrupt that was on is raised");
    let read: Vec<u8> = (0..5).map(|_| elsewhere.get(DATA)).collect();
    assert_eq!(read, b"hello");
    let mut again = SerialState::default();
    elsewhere.restore(&state).unwrap();
    elsewhere.save(&mut again);
    assert_eq!(again, state);
    state.received = vec![0; 65];
    elsewhere.restore(&state).unwrap_err();
}

#[test]
fn a_new_port_is_in_the_default_state() {
    let (port, _) = port();
    let mut state = SerialState::default();
    port.save(&mut state);
    assert_eq!(state, SerialState::default());
}
