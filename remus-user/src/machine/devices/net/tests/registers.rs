//! What the driver reads and chooses, and what becomes of it in another machine.

use super::*;

fn config(net: &Net, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    net.transport().read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, &mut bytes, 0);
    bytes
}

fn saved(guest: &Guest) -> DeviceState {
    let mut state = DeviceState::default();
    guest.net.transport().save(0, &mut state);
    state
}

#[test]
fn the_guest_is_told_its_address_and_the_longest_packet() {
    let (net, _wire) = device(Offloads::None);
    assert_eq!(config(&net, 0, 6), [2, 0, 0, 0, 0, 1]);
    assert_eq!(config(&net, 10, 2), MTU.to_le_bytes());
    assert_eq!(config(&net, 12, 2), [0; 2], "beyond the end");
}

#[test]
fn features_are_taken_with_what_they_require_or_not_at_all() {
    for (features, fine) in [
        (1 << feature::VIRTIO_NET_F_HOST_TSO4, false),
        (1 << feature::VIRTIO_NET_F_GUEST_TSO6 | 1 << feature::VIRTIO_NET_F_CSUM, false),
        (1 << feature::VIRTIO_NET_F_HOST_TSO4 | 1 << feature::VIRTIO_NET_F_CSUM, true),
        (1 << feature::VIRTIO_NET_F_HOST_ECN | 1 << feature::VIRTIO_NET_F_CSUM, false),
    ] {
        let mut guest = Guest::with(Offloads::Segmentation, 0, SIZE);
        guest.register(reg::VIRTIO_MMIO_STATUS, 0);
        guest.register(reg::VIRTIO_MMIO_STATUS, 3);
        for (half, features) in [(0, features), (1, 1)] {
            guest.register(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            guest.register(reg::VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        let effect = guest.register(reg::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(effect == Effect::Negotiated, fine, "{features:#x}");
    }
}

#[test]
fn the_tap_is_set_to_what_the_driver_took_and_to_nothing_by_a_reset() {
    let mut guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    assert_eq!(guest.net.tap.offloads(), 7);
    guest.register(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(guest.net.tap.offloads(), 0);
    let checksums = 1 << feature::VIRTIO_NET_F_GUEST_CSUM;
    let guest = Guest::with(Offloads::Segmentation, checksums, SIZE);
    assert_eq!(guest.net.tap.offloads(), 1);
}

#[test]
fn a_device_goes_on_elsewhere_with_what_was_negotiated() {
    let guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let (mut net, _wire) = device(Offloads::Segmentation);
    net.restore(guest.memory.ram(), &saved(&guest)).unwrap();
    assert!(net.transport.is_live());
    assert_eq!(net.tap.offloads(), 7);
    assert_eq!(net.negotiated, guest.net.negotiated);
}

#[test]
fn a_device_that_cannot_offer_what_was_negotiated_says_what_it_lacks() {
    let tso = 1 << feature::VIRTIO_NET_F_CSUM | 1 << feature::VIRTIO_NET_F_HOST_TSO4;
    let guest = Guest::with(Offloads::Segmentation, tso, SIZE);
    let (mut net, _wire) = device(Offloads::None);
    let refused = net.restore(guest.memory.ram(), &saved(&guest)).unwrap_err().to_string();
    assert!(refused.contains("CSUM, HOST_TSO4") && refused.contains("same engine"), "{refused}");
    assert!(!net.transport.is_live());
}

#[test]
fn a_state_with_features_that_no_driver_can_have_chosen_is_refused() {
    let guest = Guest::with(Offloads::Segmentation, ALL, SIZE);
    let mut state = saved(&guest);
    state.driver_features &= !(1 << feature::VIRTIO_NET_F_CSUM);
    let (mut net, _wire) = device(Offloads::Segmentation);
    net.restore(guest.memory.ram(), &state).unwrap_err();
}
