//! The state's form on the wire, written and read.

use super::{
    ClockState, DeviceState, Image, MachineState, Msr, QueueState, STATE_VERSION, SerialState,
    StateError, VCPUS_MAX, VcpuState,
};

/// Most model-specific registers of a vCPU (KVM's own limit on one call).
const MSRS_MAX: usize = 256;
/// Most virtio devices of a machine, and queues of a device.
const DEVICES_MAX: usize = 8;
const QUEUES_MAX: usize = 8;
/// Most bytes that the serial port has received and its guest has not read.
const RECEIVED_MAX: usize = 64;

const MAGIC: [u8; 4] = *b"RMST";
const QUEUE_READY: u8 = 1;
const QUEUE_EVENT_IDX: u8 = 2;

impl MachineState {
    /// Appends the encoding of this state to `out`.
    ///
    /// # Panics
    /// When there are more vCPUs, devices, queues, registers or received bytes than the limits of this module: a
    /// machine like that cannot have been made.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.vcpus.len() <= VCPUS_MAX && self.devices.len() <= DEVICES_MAX);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        out.push(count(self.vcpus.len()));
        out.push(count(self.devices.len()));
        out.extend_from_slice(&self.clock.guest_ns.to_le_bytes());
        out.extend_from_slice(&self.clock.real_ns.to_le_bytes());
        self.chips.iter().for_each(|chip| out.extend_from_slice(&chip.0));
        self.vcpus.iter().for_each(|vcpu| vcpu.encode(out));
        self.devices.iter().for_each(|device| device.encode(out));
        self.serial.encode(out);
    }

    /// Reads a state that [`encode`](Self::encode) wrote; `bytes` must end with it.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut from = Bytes(bytes);
        if from.array::<4>()? != MAGIC {
            return Err(StateError::Magic);
        }
        let version = from.u16()?;
        if version != STATE_VERSION {
            return Err(StateError::Version(version));
        }
        let vcpus = from.count("number of vCPUs", VCPUS_MAX)?;
        let devices = from.count("number of devices", DEVICES_MAX)?;
        let clock = ClockState { guest_ns: from.u64()?, real_ns: from.u64()? };
        let chips = [from.image()?, from.image()?, from.image()?];
        let vcpus = (0..vcpus).map(|_| VcpuState::decode(&mut from)).collect::<Result<_, _>>()?;
        let devices =
            (0..devices).map(|_| DeviceState::decode(&mut from)).collect::<Result<_, _>>()?;
        let serial = SerialState::decode(&mut from)?;
        match from.0.len() {
            0 => Ok(Self { clock, chips, vcpus, devices, serial }),
            rest => Err(StateError::Trailing(rest)),
        }
    }
}

impl VcpuState {
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.msrs.len() <= MSRS_MAX);
        out.extend_from_slice(&self.mp_state.0);
        out.extend_from_slice(&self.regs.0);
        out.extend_from_slice(&self.sregs.0);
        out.extend_from_slice(&self.xsave.0);
        out.extend_from_slice(&self.xcrs.0);
        out.extend_from_slice(&self.lapic.0);
        out.extend_from_slice(&self.events.0);
        out.extend_from_slice(&self.debug.0);
        let msrs = u16::try_from(self.msrs.len()).expect("bounded above");
        out.extend_from_slice(&msrs.to_le_bytes());
        for msr in &self.msrs {
            out.extend_from_slice(&msr.index.to_le_bytes());
            out.extend_from_slice(&msr.value.to_le_bytes());
        }
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, StateError> {
        let mut vcpu = Self {
            mp_state: from.image()?,
            regs: from.image()?,
            sregs: from.image()?,
            xsave: from.image()?,
            xcrs: from.image()?,
            lapic: from.image()?,
            events: from.image()?,
            debug: from.image()?,
            msrs: Vec::new(),
        };
        let msrs = usize::from(from.u16()?);
        in_range("number of MSRs", msrs, MSRS_MAX)?;
        vcpu.msrs.reserve_exact(msrs);
        for _ in 0..msrs {
            vcpu.msrs.push(Msr { index: from.u32()?, value: from.u64()? });
        }
        Ok(vcpu)
    }
}

impl DeviceState {
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.queues.len() <= QUEUES_MAX);
        out.extend_from_slice(&self.status.to_le_bytes());
        out.extend_from_slice(&self.driver_features.to_le_bytes());
        out.extend_from_slice(&self.device_features_sel.to_le_bytes());
        out.extend_from_slice(&self.driver_features_sel.to_le_bytes());
        out.extend_from_slice(&self.queue_sel.to_le_bytes());
        out.extend_from_slice(&self.interrupt_status.to_le_bytes());
        out.push(count(self.queues.len()));
        for queue in &self.queues {
            out.extend_from_slice(&queue.size.to_le_bytes());
            out.extend_from_slice(&queue.next_avail.to_le_bytes());
            out.extend_from_slice(&queue.next_used.to_le_bytes());
            let ready = if queue.ready { QUEUE_READY } else { 0 };
            let event_idx = if queue.event_idx { QUEUE_EVENT_IDX } else { 0 };
            out.push(ready | event_idx);
            out.extend_from_slice(&queue.descriptors.to_le_bytes());
            out.extend_from_slice(&queue.avail.to_le_bytes());
            out.extend_from_slice(&queue.used.to_le_bytes());
        }
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, StateError> {
        let mut device = Self {
            status: from.u32()?,
            driver_features: from.u64()?,
            device_features_sel: from.u32()?,
            driver_features_sel: from.u32()?,
            queue_sel: from.u32()?,
            interrupt_status: from.u32()?,
            queues: Vec::new(),
        };
        let queues = from.count("number of queues", QUEUES_MAX)?;
        device.queues.reserve_exact(queues);
        for _ in 0..queues {
            let (size, next_avail, next_used) = (from.u16()?, from.u16()?, from.u16()?);
            let [flags] = from.array::<1>()?;
            if flags & !(QUEUE_READY | QUEUE_EVENT_IDX) != 0 {
                return Err(StateError::Range { what: "queue flags", value: flags.into() });
            }
            device.queues.push(QueueState {
                size,
                next_avail,
                next_used,
                ready: flags & QUEUE_READY != 0,
                event_idx: flags & QUEUE_EVENT_IDX != 0,
                descriptors: from.u64()?,
                avail: from.u64()?,
                used: from.u64()?,
            });
        }
        Ok(device)
    }
}

impl SerialState {
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.received.len() <= RECEIVED_MAX);
        out.extend_from_slice(&self.divisor.to_le_bytes());
        out.extend_from_slice(&[
            self.interrupt_enable,
            self.interrupt_identification,
            self.line_control,
            self.line_status,
            self.modem_control,
            self.modem_status,
            self.scratch,
            count(self.received.len()),
        ]);
        out.extend_from_slice(&self.received);
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, StateError> {
        let divisor = from.u16()?;
        let [
            enable,
            identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = from.array()?;
        let received = from.count("number of received bytes", RECEIVED_MAX)?;
        Ok(Self {
            divisor,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: from.slice(received)?.to_vec(),
        })
    }
}

/// What is left of the bytes to decode.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn slice(&mut self, n: usize) -> Result<&'a [u8], StateError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn image<const N: usize>(&mut self) -> Result<Image<N>, StateError> {
        self.array().map(Image)
    }

    fn u16(&mut self) -> Result<u16, StateError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, max: usize) -> Result<usize, StateError> {
        let [n] = self.array::<1>()?;
        in_range(what, n.into(), max)
    }
}

fn in_range(what: &'static str, n: usize, max: usize) -> Result<usize, StateError> {
    if n <= max { Ok(n) } else { Err(StateError::Range { what, value: n as u64 }) }
}

fn count(n: usize) -> u8 {
    u8::try_from(n).expect("bounded by the limits of this module")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn msr() -> impl Strategy<Value = Msr> {
        (any::<u32>(), any::<u64>()).prop_map(|(index, value)| Msr { index, value })
    }

    fn vcpu() -> impl Strategy<Value = VcpuState> {
        (any::<u8>(), prop::collection::vec(msr(), 0..100)).prop_map(|(fill, msrs)| VcpuState {
            mp_state: Image([fill; 4]),
            regs: Image([fill ^ 1; 144]),
            sregs: Image([fill ^ 2; 320]),
            xsave: Image([fill ^ 3; 4096]),
            xcrs: Image([fill ^ 4; 392]),
            lapic: Image([fill ^ 5; 1024]),
            events: Image([fill ^ 6; 64]),
            debug: Image([fill ^ 7; 128]),
            msrs,
        })
    }

    fn queue() -> impl Strategy<Value = QueueState> {
        (any::<[u16; 3]>(), any::<[bool; 2]>(), any::<[u64; 3]>()).prop_map(|(n, f, a)| {
            QueueState {
                size: n[0],
                next_avail: n[1],
                next_used: n[2],
                ready: f[0],
                event_idx: f[1],
                descriptors: a[0],
                avail: a[1],
                used: a[2],
            }
        })
    }

    fn device() -> impl Strategy<Value = DeviceState> {
        let queues = prop::collection::vec(queue(), 0..=QUEUES_MAX);
        (any::<[u32; 5]>(), any::<u64>(), queues).prop_map(|(n, features, queues)| DeviceState {
            status: n[0],
            driver_features: features,
            device_features_sel: n[1],
            driver_features_sel: n[2],
            queue_sel: n[3],
            interrupt_status: n[4],
            queues,
        })
    }

    fn serial() -> impl Strategy<Value = SerialState> {
        let received = prop::collection::vec(any::<u8>(), 0..=RECEIVED_MAX);
        (any::<u16>(), any::<[u8; 7]>(), received).prop_map(|(divisor, r, received)| SerialState {
            divisor,
            interrupt_enable: r[0],
            interrupt_identification: r[1],
            line_control: r[2],
            line_status: r[3],
            modem_control: r[4],
            modem_status: r[5],
            scratch: r[6],
            received,
        })
    }

    fn state() -> impl Strategy<Value = MachineState> {
        let vcpus = prop::collection::vec(vcpu(), 0..3);
        let devices = prop::collection::vec(device(), 0..3);
        (any::<[u64; 2]>(), any::<[u8; 3]>(), vcpus, devices, serial()).prop_map(
            |(c, fill, vcpus, devices, serial)| MachineState {
                clock: ClockState { guest_ns: c[0], real_ns: c[1] },
                chips: fill.map(|b| Image([b; 520])),
                vcpus,
                devices,
                serial,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_state_comes_back_whole_and_no_prefix_of_it_does(state in state(), at in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            prop_assert_eq!(MachineState::decode(&bytes), Ok(state));
            prop_assert!(MachineState::decode(&bytes[..at.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert_eq!(MachineState::decode(&bytes), Err(StateError::Trailing(1)));
        }

        #[test]
        fn garbage_behind_a_good_head_never_panics(tail in prop::collection::vec(any::<u8>(), 0..30_000)) {
            let mut bytes = b"RMST\x02\x00".to_vec();
            bytes.extend(tail);
            prop_assert!(MachineState::decode(&bytes).is_err() || bytes.len() > 1_500);
        }
    }

    /// One state, byte by byte: who changes what comes out changes the version too.
    #[test]
    fn version_2_is_what_it_was() {
        const GOLDEN: &str = include_str!("../../../../tests/golden/state-v2.txt");
        let queue = QueueState {
            size: 256,
            next_avail: 3,
            next_used: 2,
            ready: true,
            event_idx: true,
            descriptors: 0x1000,
            avail: 0x2000,
            used: 0x3000,
        };
        let device = DeviceState {
            status: 15,
            driver_features: 1 << 32,
            device_features_sel: 1,
            driver_features_sel: 2,
            queue_sel: 3,
            interrupt_status: 1,
            queues: vec![queue, QueueState { ready: false, ..queue }],
        };
        let state = MachineState {
            clock: ClockState { guest_ns: 0x1122, real_ns: 0x3344 },
            devices: vec![device, DeviceState::default()],
            serial: SerialState { received: b"typed".to_vec(), ..SerialState::default() },
            ..MachineState::default()
        };
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        // Zeros: the three interrupt chips.
        let chips = 24..24 + 3 * 520;
        assert_eq!(bytes[chips.clone()], [0; 3 * 520]);
        bytes.drain(chips);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = GOLDEN.lines().find_map(|line| line.strip_prefix("state ")).unwrap();
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_serial_port_that_received_more_than_it_holds_is_refused() {
        let serial = SerialState { received: vec![7; RECEIVED_MAX], ..SerialState::default() };
        let mut bytes = Vec::new();
        MachineState { serial, ..MachineState::default() }.encode(&mut bytes);
        let at = bytes.len() - RECEIVED_MAX - 1;
        bytes[at] += 1;
        bytes.push(7);
        let error = StateError::Range { what: "number of received bytes", value: 65 };
        assert_eq!(MachineState::decode(&bytes), Err(error));
    }

    #[test]
    fn a_state_of_another_version_is_named() {
        let mut bytes = Vec::new();
        MachineState::default().encode(&mut bytes);
        bytes[4] = 9;
        assert_eq!(MachineState::decode(&bytes), Err(StateError::Version(9)));
        bytes[0] = 0;
        assert_eq!(MachineState::decode(&bytes), Err(StateError::Magic));
    }
}
