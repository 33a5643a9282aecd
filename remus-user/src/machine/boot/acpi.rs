//! The ACPI tables of a machine without a BIOS: hardware-reduced, no PM registers, no timers, no PCI.
//!
//! In the order in which they lie in memory: RSDP, DSDT, FADT, MADT, XSDT. The DSDT names the serial port, each
//! virtio-mmio device (LNRO0005, which is how Linux finds them without a command line: VIRTIO_MMIO is a module in
//! Debian's kernels), and the sleep type that is soft off. The registers that the FADT names are
//! [`power`]'s.
//!
//! Interrupts are edge-triggered, active high, as the machine raises them; no controller but IOAPIC and APICs is told of.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use remus_abi::boot::{
    SERIAL_GSI, SERIAL_PORT, VIRTIO_GSI_BASE, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE,
};

use super::Firmware;
use crate::machine::devices::power;

const OEM: [u8; 6] = *b"REMUS ";
const TABLE: [u8; 8] = *b"REMUSVMM";
const REVISION: u32 = 1;
/// Where KVM's interrupt controllers are, as on every PC.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// IAPC_BOOT_ARCH: neither VGA nor a CMOS clock is there to be probed (Linux waits for a clock that does not answer until
/// its watchdog speaks of a lockup); nor, since nothing else is said, a keyboard controller or other devices of old.
const NO_VGA_NO_CLOCK: u16 = 1 << 2 | 1 << 5;
/// The size of a header that all tables share.
const HEADER: u32 = 36;

/// Returns all tables as they are to be put at `address`, where the RSDP is then.
pub(super) fn tables(firmware: Firmware, address: u64) -> Vec<u8> {
    // Space for the RSDP, which names what comes last.
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(ALIGNMENT)];
    let dsdt = append(&mut bytes, address, &dsdt(firmware));
    let fadt = append(&mut bytes, address, &fadt(dsdt));
    let madt = append(&mut bytes, address, &madt(firmware));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, address, &xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

const ALIGNMENT: usize = 16;

/// Appends a table and says at which address it is.
fn append(bytes: &mut Vec<u8>, address: u64, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let at = address + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    at
}

fn fadt(dsdt: u64) -> impl Aml {
    let register =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = NO_VGA_NO_CLOCK.into();
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(firmware: Firmware) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    for id in 0..firmware.vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

fn dsdt(firmware: Firmware) -> impl Aml {
    let mut body = Vec::new();
    serial(&mut body);
    (0..firmware.virtio_devices).for_each(|n| virtio(&mut body, n));
    let zero = &0u8;
    Name::new("_S5_".into(), &Package::new(vec![&power::SOFT_OFF, zero, zero, zero]))
        .to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&body);
    dsdt
}

fn serial(body: &mut Vec<u8>) {
    let gsi = Interrupt::new(true, true, false, false, SERIAL_GSI);
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    device(body, "COM1", &EISAName::new("PNP0501"), 0, vec![&ports, &gsi]);
}

fn virtio(body: &mut Vec<u8>, n: u32) {
    let base = VIRTIO_MMIO_BASE + u64::from(n) * VIRTIO_MMIO_SIZE;
    let base = u32::try_from(base).expect("in the device hole");
    let bytes = u32::try_from(VIRTIO_MMIO_SIZE).expect("a page");
    let registers = Memory32Fixed::new(true, base, bytes);
    let gsi = Interrupt::new(true, true, false, false, VIRTIO_GSI_BASE + n);
    let name = format!("VR{n:02X}");
    device(body, &name, &"LNRO0005", n, vec![&registers, &gsi]);
}

fn device(body: &mut Vec<u8>, name: &str, id: &dyn Aml, unit: u32, uses: Vec<&dyn Aml>) {
    let id = Name::new("_HID".into(), id);
    let unit = Name::new("_UID".into(), &unit);
    let coherent = Name::new("_CCA".into(), &1u8);
    let uses = Name::new("_CRS".into(), &ResourceTemplate::new(uses));
    let device = Device::new(Path::new(name), vec![&id, &unit, &coherent, &uses]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::super::{map, vector};
    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap()
    }

    fn long(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
    }

    #[test]
    fn every_table_is_found_from_the_root_and_sums_to_zero() {
        let firmware = Firmware { vcpus: 64, virtio_devices: 8 };
        let bytes = tables(firmware, map::TABLES);
        let table_at = |address: usize| {
            let at = address - usize::try_from(map::TABLES).unwrap();
            let table = &bytes[at..at + word(&bytes, at + 4)];
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            table
        };
        assert!(bytes.len() as u64 <= vector::ADDRESS - map::TABLES);
        assert_eq!(bytes[..8], *b"RSD PTR ");
        let xsdt = table_at(long(&bytes, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
        let (fadt, madt) = (table_at(long(xsdt, 36)), table_at(long(xsdt, 44)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 12 + 64 * 8);
        // ACPI 6.5, table 5.9: flags at 112, X_DSDT at 140.
        assert_eq!(word(fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let dsdt = table_at(long(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let found = |what: &[u8]| dsdt.windows(what.len()).filter(|at| *at == what).count();
        assert_eq!((found(b"LNRO0005"), found(b"VR07"), found(b"_S5_")), (8, 1, 1));
    }
}
