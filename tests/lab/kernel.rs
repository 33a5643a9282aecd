//! The lab's kernel is older than the one on which the gate is usually tested.

use remus::gate::{HookKind, Trigger};

use super::in_the_lab;

/// Linux 6.1 has no TCX. All gates of the lab's tests are filters of the clsact qdisc.
#[test]
fn a_kernel_without_tcx_has_its_gates_in_the_clsact_qdisc() {
    in_the_lab();
    assert_eq!(HookKind::of_this_kernel().unwrap(), HookKind::Clsact);
}

/// The trigger `kernel` is attached by TCX and nothing else, so that its tests cannot hold here.
#[test]
fn a_kernel_without_tcx_refuses_the_trigger_and_says_what_it_takes() {
    in_the_lab();
    let refused = format!("{:#}", Trigger::can_be_at("lo").unwrap_err());
    assert!(refused.contains("Linux 6.6"), "{refused}");
}
