//! What a pinned link is attached to, asked of the kernel: aya keeps this part of the answer to itself.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// A link of a program to the ingress of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TcxLink {
    /// `None` when the interface is gone: the link stays, and guards nothing (`tcx_uninstall` in
    /// kernel/bpf/tcx.c, 6.18).
    pub(super) ifindex: Option<u32>,
}

/// `union bpf_attr` as BPF_OBJ_GET reads it.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` as BPF_OBJ_GET_INFO_BY_FD reads it.
#[repr(C)]
struct ObjInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, and the part of its union that a TCX link has.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_TCX_INGRESS: u32 = 46;

impl TcxLink {
    /// The link pinned at `path`.
    ///
    /// # Errors
    /// When nothing is pinned there, or something else than a link to an ingress by TCX.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        let fd = RawFd::try_from(bpf(BPF_OBJ_GET, &attr)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just returned it; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        let mut info = LinkInfo::default();
        let attr = ObjInfo {
            bpf_fd: fd.as_raw_fd().unsigned_abs(),
            info_len: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
            info: (&raw mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
        if info.kind != BPF_LINK_TYPE_TCX || info.attach_type != BPF_TCX_INGRESS {
            return Err(io::Error::other("it is no link to an interface's ingress"));
        }
        let ifindex = (info.ifindex != 0).then_some(info.ifindex);
        Ok(Self { ifindex })
    }
}

/// bpf(2) with an attribute that points at nothing but live memory of the sizes that it names.
fn bpf<A>(command: libc::c_int, attr: &A) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is read only, whole and of the size given; what it points at is alive in the caller.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
