//! KVM in the lab is a stock one, on hardware virtualization with nested paging. That our guests run on it is what
//! the tests of tests/kvm show there.

use std::fs;

use remus::machine::{self, Kind};

use super::in_the_lab;

#[test]
fn the_lab_has_a_true_kvm_that_lacks_nothing() {
    in_the_lab();
    // It also looks at the version of the API.
    let kvm = machine::probe().unwrap();
    assert_eq!(kvm.kind, Kind::Svm);
    assert!(kvm.missing.is_empty(), "{:?}", kvm.missing);
    let nested_paging = fs::read_to_string("/sys/module/kvm_amd/parameters/npt").unwrap();
    assert_eq!(nested_paging.trim(), "Y");
}
