//! Somebody else's programs: the smallest there are, put where the gate should be first.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya::programs::links::{FdLink, PinnedLink};

/// What a program is attached as: numbers of `enum bpf_prog_type` and `enum bpf_attach_type`.
#[derive(Clone, Copy)]
pub(crate) enum Stranger {
    TcxIngress,
    Xdp,
}

impl Stranger {
    fn program_type(self) -> u32 {
        match self {
            Self::TcxIngress => 3,
            Self::Xdp => 6,
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Self::TcxIngress => 46,
            Self::Xdp => 37,
        }
    }

    fn flags(self) -> u32 {
        const BPF_F_BEFORE: u32 = 1 << 3;
        const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
        match self {
            Self::TcxIngress => BPF_F_BEFORE,
            Self::Xdp => XDP_FLAGS_SKB_MODE,
        }
    }

    /// Attaches a program that lets every frame go on, in front of others. It is attached while the answer lives.
    pub(crate) fn attach(self, ifindex: u32) -> OwnedFd {
        let program = self.load();
        let mut link = [0u32; 16];
        link[0] = program.as_raw_fd().cast_unsigned();
        link[1] = ifindex;
        link[2] = self.attach_type();
        link[3] = self.flags();
        bpf(28, &link).expect("BPF_LINK_CREATE")
    }

    /// `r0 = 2; exit`, or -1 for TC: XDP_PASS, TCX_NEXT.
    fn load(self) -> OwnedFd {
        let verdict: i32 = match self {
            Self::TcxIngress => -1,
            Self::Xdp => 2,
        };
        let code: [u64; 2] = [0xb7 | u64::from(verdict.cast_unsigned()) << 32, 0x95];
        let licence = c"GPL";
        let mut attributes = [0u32; 32];
        attributes[0] = self.program_type();
        attributes[1] = u32::try_from(code.len()).unwrap();
        put(&mut attributes, 2, code.as_ptr() as u64);
        put(&mut attributes, 4, licence.as_ptr() as u64);
        bpf(5, &attributes).expect("BPF_PROG_LOAD: needs root")
    }
}

/// Detaches the link that is pinned at `path`, as its owner may at any time.
pub(crate) fn detach_link(path: &Path) {
    let link = FdLink::from(PinnedLink::from_pin(path).unwrap());
    let id = link.info().unwrap().id();
    // BPF_LINK_GET_FD_BY_ID, BPF_LINK_DETACH.
    let link = bpf(30, &[id, 0, 0, 0]).expect("a descriptor of the link");
    let detach = [link.as_raw_fd().cast_unsigned(), 0];
    // SAFETY: attributes that live during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 34, detach.as_ptr(), size_of_val(&detach)) };
    assert_eq!(result, 0, "BPF_LINK_DETACH: {}", io::Error::last_os_error());
}

fn put(attributes: &mut [u32], at: usize, value: u64) {
    let [low, high] = [value & u64::from(u32::MAX), value >> 32];
    attributes[at] = u32::try_from(low).unwrap();
    attributes[at + 1] = u32::try_from(high).unwrap();
}

/// A command that returns a descriptor.
fn bpf(command: i32, attributes: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: attributes that live during the call; what they point to lives as long.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes))
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}
