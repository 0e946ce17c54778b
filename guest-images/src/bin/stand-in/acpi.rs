//! ACPI tables: CPUs, IOAPIC, a power button, and the disk's window.

use acpi_tables::aml::{
    Device, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::Result;

/// The virtio-mmio window of the disk, and its interrupt.
pub const DISK_WINDOW: u64 = 0xd000_0000;
pub const DISK_WINDOW_LEN: u64 = 0x1000;
pub const DISK_GSI: u32 = 5;
/// PM1 event block (4 bytes) and control block (2 bytes).
pub const PM1_EVENT: u16 = 0x600;
pub const PM1_CONTROL: u16 = 0x604;
/// The interrupt of ACPI's own events.
pub const SCI_GSI: u32 = 9;

const OEM: [u8; 6] = *b"VMREST";
const TABLE: [u8; 8] = *b"STAND-IN";
const TABLES: u64 = 0xe_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

struct Bytes_(Vec<u8>);

impl AmlSink for Bytes_ {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes_(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// Writes the tables; gives the address of the root pointer.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<u64> {
    let mut at = TABLES + 0x40;
    let mut put = |bytes: &[u8]| -> Result<u64> {
        let here = at;
        memory.write_slice(bytes, GuestAddress(here))?;
        at = (here + bytes.len() as u64 + 15) & !15;
        Ok(here)
    };
    let dsdt = put(dsdt().as_slice())?;
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1).dsdt_32(dsdt as u32);
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    // No VGA, no CMOS clock; no keyboard controller, since its bit is not set.
    fadt.iapc_boot_arch = (1u16 << 2 | 1 << 5).into();
    // WBINVD works; HLT is C1; the sleep button is none of the fixed ones.
    fadt.flags = (1u32 | 1 << 2 | 1 << 5).into();
    let fadt = put(&bytes(&fadt.finalize()))?;

    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    let madt = put(&bytes(&madt))?;

    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(TABLES))?;
    Ok(TABLES)
}

/// The disk as a device of the virtio-mmio driver, and how to turn off.
fn dsdt() -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    let window = Memory32Fixed::new(true, DISK_WINDOW as u32, DISK_WINDOW_LEN as u32);
    let interrupt = Interrupt::new(true, true, false, false, DISK_GSI);
    let resources = ResourceTemplate::new(vec![&window, &interrupt]);
    let (hid, uid, crs) = (
        Name::new("_HID".into(), &"LNRO0005"),
        Name::new("_UID".into(), &ZERO),
        Name::new("_CRS".into(), &resources),
    );
    let disk = Device::new(Path::new("_SB_.VDA0"), vec![&hid, &uid, &crs]);
    let off = Package::new(vec![&5u8, &5u8, &ZERO, &ZERO]);
    let sleep = Name::new("_S5_".into(), &off);
    table.append_slice(&bytes(&disk));
    table.append_slice(&bytes(&sleep));
    table
}
