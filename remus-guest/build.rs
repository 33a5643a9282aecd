//! The guest is linked at the address where it is loaded. Nothing of this concerns the library.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    // The target makes position-independent executables; nobody would relocate this one. The VMM's own
    // structures are below 1 MiB (`remus_abi::boot::GUEST_BASE`).
    for arg in ["--no-pie", "--image-base=0x100000", "-zmax-page-size=0x1000", "-znorelro"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
