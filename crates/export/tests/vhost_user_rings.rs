//! Memory and rings: what is refused, and what the device is told, in which order.

#![allow(missing_docs, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;

use common::*;
use export::vhost_user::frontend::Vring;
use export::vhost_user::message::{Payload, ProtocolFeatures, RingAddrs, code};
use export::vhost_user::{ErrorKind, MEM_SLOTS_MAX, feature};
use guest_mem::{GuestAddr, RegionSpec};
use rustix::io::write;
use std::os::fd::{AsFd, OwnedFd};

// ---- Memory ----

#[test]
fn regions_that_cannot_be_are_refused() {
    let mut rig = Rig::negotiated();
    let (good, memory) = region();
    let bad = |name: &'static str, change: &dyn Fn(&mut RegionSpec)| {
        let mut spec = good;
        change(&mut spec);
        (name, spec)
    };
    let cases = [
        bad("empty", &|s| s.len = 0),
        bad("longer than its file", &|s| s.len = REGION_LEN + 1),
        bad("2^48 bytes", &|s| s.len = 1 << 48),
        bad("behind its file", &|s| s.file_offset = REGION_LEN),
        bad("offset wraps", &|s| s.file_offset = u64::MAX - 5),
        bad("offset and length reach too far", &|s| s.file_offset = 1),
        bad("guest addresses wrap", &|s| s.guest_addr = GuestAddr(u64::MAX - 5)),
        bad("user addresses wrap", &|s| s.user_addr = u64::MAX - 5),
    ];
    for (name, spec) in cases {
        assert_refused(rig.front.set_mem_table(&[(spec, memory.as_fd())]), name);
        assert_refused(rig.front.add_region(&spec, memory.as_fd()), name);
    }
    assert_eq!(rig.device.calls(), Vec::<String>::new());
    rig.close();
}

#[test]
fn a_sparse_file_that_claims_more_than_can_be_mapped_is_refused() {
    let mut rig = Rig::negotiated();
    let (mut spec, _) = region();
    spec.len = 1 << 62;
    let huge = memfd(1 << 62);
    assert_refused(rig.front.add_region(&spec, huge.as_fd()), "4 EiB");
    rig.assert_alive("after 4 EiB");
}

#[test]
fn regions_that_overlap_are_refused_and_nothing_changes() {
    let mut rig = Rig::negotiated();
    let (first, memory) = region();
    rig.front.add_region(&first, memory.as_fd()).unwrap();
    let far = RegionSpec { guest_addr: GuestAddr(0), user_addr: 0, ..first };
    let guest = RegionSpec { guest_addr: GuestAddr(GUEST_BASE + REGION_LEN - 1), ..far };
    let user = RegionSpec { user_addr: USER_BASE + REGION_LEN - 1, ..far };
    for (name, spec) in [("duplicate", first), ("guest", guest), ("user", user)] {
        assert_refused(rig.front.add_region(&spec, memory.as_fd()), name);
        let table = [(first, memory.as_fd()), (spec, memory.as_fd())];
        assert_refused(rig.front.set_mem_table(&table), name);
    }
    assert_eq!(rig.device.calls(), ["memory 1"]);
}

#[test]
fn a_table_has_1_to_32_regions_and_one_file_may_back_several() {
    let mut rig = Rig::negotiated();
    let memory = memfd(64 << 12);
    let table = |count: u64| -> Vec<_> {
        let page = |i: u64| RegionSpec {
            guest_addr: GuestAddr(i << 12),
            len: 1 << 12,
            user_addr: USER_BASE + (i << 13),
            file_offset: i << 12,
        };
        (0..count).map(|i| (page(i), memory.as_fd())).collect()
    };
    assert_refused(rig.front.set_mem_table(&[]), "none");
    assert_refused(rig.front.set_mem_table(&table(33)), "33");
    rig.front.set_mem_table(&table(32)).unwrap();
    rig.front.set_mem_table(&table(1)).unwrap();
    assert_eq!(rig.device.calls(), ["memory 32", "memory 1"]);
    let lying = Payload::new().u32(u32::MAX).u32(0).bytes(&[0; 32]).done();
    let outcome = rig.front.request(code::SET_MEM_TABLE, &lying, &[memory.as_fd()]);
    assert_refused(outcome, "2^32 - 1 regions announced");
}

#[test]
fn a_region_at_an_odd_file_offset_is_mapped() {
    let mut rig = Rig::negotiated();
    let (mut spec, memory) = region();
    spec.file_offset = 0x123;
    spec.len -= 0x123;
    rig.front.add_region(&spec, memory.as_fd()).unwrap();
}

#[test]
fn removing_an_unknown_region_is_refused_and_a_file_sent_along_is_ignored() {
    let mut rig = Rig::negotiated();
    let (spec, memory) = region();
    rig.front.add_region(&spec, memory.as_fd()).unwrap();
    for other in [
        RegionSpec { guest_addr: GuestAddr(0), ..spec },
        RegionSpec { user_addr: 0, ..spec },
        RegionSpec { len: 4096, ..spec },
    ] {
        assert_refused(rig.front.remove_region(&other), "unknown");
    }
    let payload = Payload::new().u64(0).region(&spec).done();
    rig.front.request(code::REM_MEM_REG, &payload, &[memory.as_fd()]).unwrap();
    assert_refused(rig.front.remove_region(&spec), "twice");
    assert_eq!(rig.device.calls(), ["memory 1", "memory 0"]);
}

#[test]
fn all_memory_slots_can_be_used_and_no_more() {
    let mut rig = Rig::negotiated();
    assert_eq!(rig.front.get_u64(code::GET_MAX_MEM_SLOTS).unwrap(), MEM_SLOTS_MAX as u64);
    let memory = memfd(4096);
    let slot = |i: u64| RegionSpec {
        guest_addr: GuestAddr(i << 12),
        len: 4096,
        user_addr: i << 12,
        file_offset: 0,
    };
    for i in 0..MEM_SLOTS_MAX as u64 {
        rig.front.add_region(&slot(i), memory.as_fd()).unwrap();
    }
    assert_refused(rig.front.add_region(&slot(1 << 20), memory.as_fd()), "one too many");
    rig.front.remove_region(&slot(7)).unwrap();
    rig.front.add_region(&slot(1 << 20), memory.as_fd()).unwrap();
}

#[test]
fn a_ring_that_loses_its_memory_is_stopped_and_can_start_again_where_it_was() {
    let (mut rig, spec, memory) = running(2);
    let other = RegionSpec { guest_addr: GuestAddr(1 << 40), user_addr: 1 << 30, ..spec };
    rig.front.add_region(&other, memory.as_fd()).unwrap();
    assert_eq!(rig.device.started(), [0, 1], "another region is no reason to stop");
    rig.device.calls();
    rig.front.remove_region(&spec).unwrap();
    assert_eq!(rig.device.calls(), ["stop 0", "stop 1", "memory 1"], "stopped before the move");
    assert_eq!(rig.front.stop_vring(0).unwrap(), 7, "where the device had stopped");
    assert_eq!(rig.device.calls(), Vec::<String>::new());
    let kick = event();
    let outcome = rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd()));
    assert_refused(outcome, "there is no memory to start in");
    rig.front.add_region(&spec, memory.as_fd()).unwrap();
    rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd())).unwrap();
    assert_eq!(rig.device.state().started[&0].next_avail, 7);
    assert!(rig.device.state().started[&0].enabled, "nobody disabled it");
    rig.close();
}

#[test]
fn a_ring_whose_memory_moves_in_the_guest_is_stopped() {
    let (mut rig, spec, memory) = running(1);
    let moved = RegionSpec { guest_addr: GuestAddr(0), ..spec };
    rig.device.calls();
    rig.front.set_mem_table(&[(moved, memory.as_fd())]).unwrap();
    assert_eq!(rig.device.calls(), ["stop 0", "memory 1"]);
}

#[test]
fn rings_go_on_when_the_same_memory_is_announced_again() {
    let (mut rig, spec, memory) = running(2);
    rig.device.calls();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    assert_eq!(rig.device.calls(), ["memory 1"]);
    assert_eq!(rig.device.started(), [0, 1]);
}

#[test]
fn a_ring_the_device_gives_up_in_new_memory_is_stopped() {
    let (mut rig, spec, memory) = running(2);
    rig.device.calls();
    rig.device.state().breaks = vec![1, 2, 77];
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    assert_eq!(rig.device.calls(), ["memory 1", "stop 1"], "2 is not started, 77 does not exist");
    assert_eq!(rig.front.stop_vring(1).unwrap(), 7);
}

// ---- Setting a ring up ----

#[test]
fn a_ring_index_out_of_range_is_refused_in_every_message() {
    let mut rig = Rig::negotiated();
    let (spec, memory) = region();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    let event = event();
    for index in [QUEUES, 255, 256, u16::MAX] {
        for request in [code::SET_VRING_NUM, code::SET_VRING_BASE, code::SET_VRING_ENABLE] {
            assert_refused(rig.front.vring_state(request, index, 1), &format!("{request} {index}"));
        }
        assert_refused(rig.front.set_vring_addr(index, &ring_addrs(0)), "SET_VRING_ADDR");
        for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
            let outcome = rig.front.vring_fd(request, index, Some(event.as_fd()));
            assert_refused(outcome, &format!("{request} {index}"));
        }
    }
    // An index whose lower 16 bits would be a ring's.
    let state = Payload::new().u32(1 << 16).u32(1).done();
    assert_refused(rig.front.request(code::SET_VRING_NUM, &state, &[]), "2^16");
    rig.front.send(code::GET_VRING_BASE, true, &state, &[]).unwrap();
    assert_eq!(rig.ended().kind(), ErrorKind::Refused, "GET_VRING_BASE has no way to say no");
}

#[test]
fn unknown_bits_beside_the_index_of_an_event_are_refused() {
    let mut rig = Rig::negotiated();
    let event = event();
    for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
        for bit in 9..64 {
            let payload = Payload::new().u64(1 << bit).done();
            let outcome = rig.front.request(request, &payload, &[event.as_fd()]);
            assert_refused(outcome, &format!("{request}, bit {bit}"));
        }
        let no_fd = Payload::new().u64(1 << 8).done();
        let outcome = rig.front.request(request, &no_fd, &[event.as_fd()]);
        assert_refused(outcome, "no fd announced, but one sent");
    }
}

#[test]
fn a_ring_size_is_a_power_of_two_up_to_what_the_device_takes() {
    let mut rig = Rig::negotiated();
    for size in [0, 3, 100, 257, 512, 32768, 32769, 65535, 65536, 65536 + 128, u32::MAX] {
        assert_refused(rig.front.vring_state(code::SET_VRING_NUM, 0, size), &size.to_string());
    }
    for size in [1, 2, 128, 256] {
        rig.front.vring_state(code::SET_VRING_NUM, 0, size).unwrap();
    }
}

#[test]
fn a_base_is_a_16_bit_index() {
    let mut rig = Rig::negotiated();
    for base in [1 << 16, 1 << 31, u32::MAX] {
        assert_refused(rig.front.vring_state(code::SET_VRING_BASE, 0, base), &base.to_string());
    }
    rig.front.vring_state(code::SET_VRING_BASE, 0, 0xffff).unwrap();
    assert_eq!(rig.front.stop_vring(0).unwrap(), 0xffff, "a stopped ring answers what was set");
}

#[test]
fn ring_addresses_before_any_memory_are_refused() {
    let mut rig = Rig::negotiated();
    assert_refused(rig.front.set_vring_addr(0, &ring_addrs(0)), "no memory");
}

#[test]
fn the_log_flag_and_unknown_flags_of_a_ring_are_refused() {
    let (mut rig, ..) = running(0);
    let addrs = ring_addrs(0);
    for flags in [1, 2, 3, 1 << 31] {
        let payload = Payload::new().u32(0).u32(flags);
        let payload = payload.u64(addrs.desc).u64(addrs.used).u64(addrs.avail).u64(0).done();
        assert_refused(rig.front.request(code::SET_VRING_ADDR, &payload, &[]), "flags");
    }
}

#[test]
fn a_ring_does_not_start_where_it_cannot_be() {
    let good = ring_addrs(0);
    let end = USER_BASE + REGION_LEN;
    let cases = [
        ("descriptor table misaligned", RingAddrs { desc: good.desc + 8, ..good }),
        ("avail ring misaligned", RingAddrs { avail: good.avail + 1, ..good }),
        ("used ring misaligned", RingAddrs { used: good.used + 2, ..good }),
        ("descriptor table ends outside", RingAddrs { desc: end - 16, ..good }),
        ("avail ring ends outside", RingAddrs { avail: end - 2, ..good }),
        ("used ring ends outside", RingAddrs { used: end - 4, ..good }),
        ("all at one place", RingAddrs { desc: good.desc, avail: good.desc, used: good.desc }),
        ("used over descriptors", RingAddrs { used: good.desc + 16, ..good }),
        ("used over avail", RingAddrs { used: good.avail + 8, ..good }),
    ];
    let (mut rig, ..) = running(0);
    let kick = event();
    rig.front.vring_state(code::SET_VRING_NUM, 0, 128).unwrap();
    for (name, addrs) in cases {
        rig.front.set_vring_addr(0, &addrs).unwrap();
        let outcome = rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd()));
        assert_refused(outcome, name);
    }
    for addr in [0, GUEST_BASE, USER_BASE - 1, end, u64::MAX] {
        for addrs in [
            RingAddrs { desc: addr, ..good },
            RingAddrs { avail: addr, ..good },
            RingAddrs { used: addr, ..good },
        ] {
            assert_refused(rig.front.set_vring_addr(0, &addrs), &format!("{addr:#x}"));
        }
    }
    assert_eq!(rig.device.started(), Vec::<u16>::new());
    rig.front.set_vring_addr(0, &good).unwrap();
    rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd())).unwrap();
    assert_eq!(rig.device.started(), [0]);
}

#[test]
fn a_ring_across_two_adjacent_regions_does_not_start() {
    let mut rig = Rig::negotiated();
    let (first, memory) = region();
    let half = REGION_LEN / 2;
    let low = RegionSpec { len: half, ..first };
    let high = RegionSpec {
        guest_addr: GuestAddr(GUEST_BASE + half),
        user_addr: USER_BASE + half,
        file_offset: half,
        len: half,
    };
    rig.front.set_mem_table(&[(low, memory.as_fd()), (high, memory.as_fd())]).unwrap();
    let kick = event();
    let across = RingAddrs { desc: USER_BASE + half - 64, ..ring_addrs(0) };
    let vring = Vring { size: 128, addrs: across, base: 0, kick: kick.as_fd(), call: None };
    assert_refused(rig.front.start_vring(0, &vring), "across");
}

#[test]
fn a_kick_before_size_addresses_or_features_is_refused() {
    let (spec, memory) = region();
    let kick = event();
    for missing in ["size", "addresses", "features"] {
        let mut rig = Rig::new();
        rig.front.set_protocol_features(ProtocolFeatures::OFFERED).unwrap();
        rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
        if missing != "features" {
            rig.front.set_features(feature::VERSION_1).unwrap();
        }
        if missing != "size" {
            rig.front.vring_state(code::SET_VRING_NUM, 0, 128).unwrap();
        }
        if missing != "addresses" {
            rig.front.set_vring_addr(0, &ring_addrs(0)).unwrap();
        }
        let outcome = rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd()));
        assert_refused(outcome, missing);
        assert_eq!(rig.device.started(), Vec::<u16>::new());
    }
}

#[test]
fn a_kick_without_a_file_descriptor_is_refused() {
    let (mut rig, ..) = running(1);
    for index in [0, 1] {
        assert_refused(rig.front.vring_fd(code::SET_VRING_KICK, index, None), "polling");
    }
}

#[test]
fn a_device_that_refuses_to_start_a_queue_leaves_it_stopped() {
    let (mut rig, ..) = running(0);
    rig.device.state().fail_start = true;
    let kick = event();
    let vring = Vring { size: 128, addrs: ring_addrs(0), base: 5, kick: kick.as_fd(), call: None };
    assert_refused(rig.front.start_vring(0, &vring), "the device says no");
    assert_eq!(rig.front.stop_vring(0).unwrap(), 5);
    rig.front.start_vring(0, &vring).unwrap();
    rig.close();
}

// ---- A ring's life ----

#[test]
fn a_ring_starts_with_what_was_said_about_it() {
    let (mut rig, ..) = running(0);
    start(&mut rig, 1, 41);
    {
        let state = rig.device.state();
        let queue = &state.started[&1];
        assert_eq!(queue.next_avail, 41);
        assert_eq!(queue.config.size, 128);
        assert_eq!(queue.config.desc, GuestAddr(GUEST_BASE + 0x4000));
        assert_eq!(queue.config.avail, GuestAddr(GUEST_BASE + 0x5000));
        assert_eq!(queue.config.used, GuestAddr(GUEST_BASE + 0x6000));
        assert!(queue.config.event_idx && queue.config.indirect);
        let negotiated = FEATURES & !(feature::LOG_ALL | feature::IOMMU_PLATFORM);
        assert_eq!(queue.features, negotiated, "virtio's bits only");
        assert!(queue.enabled && queue.call.is_some() && queue.err.is_none());
    }
    assert_eq!(rig.device.calls(), ["memory 1", "start 1", "enable 1 true"]);
    rig.close();
}

#[test]
fn features_the_driver_did_not_take_are_off() {
    let mut rig = Rig::new();
    rig.front.handshake(feature::VERSION_1, ProtocolFeatures::OFFERED).unwrap();
    let (spec, memory) = region();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    start(&mut rig, 0, 0);
    let state = rig.device.state();
    let config = state.started[&0].config;
    assert!(!config.event_idx && !config.indirect);
}

#[test]
fn without_protocol_features_a_ring_is_enabled_from_its_start_on() {
    let mut rig = Rig::new();
    rig.front.handshake(feature::VERSION_1, ProtocolFeatures::OFFERED).unwrap();
    let (spec, memory) = region();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    start(&mut rig, 0, 0);
    assert!(rig.device.state().started[&0].enabled);
    assert_refused(rig.front.enable_vring(0, false), "the bit was not negotiated");
}

#[test]
fn enabling_is_tracked_for_a_stopped_ring_and_passed_on_for_a_started_one() {
    let (mut rig, ..) = running(0);
    rig.front.enable_vring(0, true).unwrap();
    assert_eq!(rig.device.calls(), ["memory 1"], "nothing to tell the device");
    start(&mut rig, 0, 0);
    assert!(rig.device.state().started[&0].enabled);
    rig.front.enable_vring(0, false).unwrap();
    rig.front.enable_vring(0, false).unwrap();
    assert_eq!(rig.device.calls(), ["start 0", "enable 0 false"]);
    for odd in [2, u32::MAX] {
        assert_refused(rig.front.vring_state(code::SET_VRING_ENABLE, 0, odd), "not a truth value");
    }
}

#[test]
fn a_ring_is_stopped_before_its_base_is_answered_and_goes_on_from_there() {
    let (mut rig, ..) = running(2);
    rig.device.calls();
    assert_eq!(rig.front.stop_vring(0).unwrap(), 7);
    assert_eq!(rig.device.calls(), ["stop 0"], "drained by the time the answer is here");
    assert_eq!(rig.front.stop_vring(0).unwrap(), 7, "stopping twice is answering twice");
    assert_eq!(rig.device.calls(), Vec::<String>::new());
    assert_eq!(rig.device.started(), [1], "the other one is not touched");
    start(&mut rig, 0, 0xfffe);
    assert_eq!(rig.front.stop_vring(0).unwrap(), 5, "the index wraps");
    rig.close();
}

#[test]
fn a_started_ring_keeps_its_size_base_addresses_and_features() {
    let (mut rig, ..) = running(1);
    let features = rig.front.features();
    rig.front.vring_state(code::SET_VRING_NUM, 0, 128).unwrap();
    rig.front.set_vring_addr(0, &ring_addrs(0)).unwrap();
    rig.front.set_features(features).unwrap();
    assert_refused(rig.front.vring_state(code::SET_VRING_NUM, 0, 64), "size");
    assert_refused(rig.front.vring_state(code::SET_VRING_BASE, 0, 0), "base");
    assert_refused(rig.front.set_vring_addr(0, &ring_addrs(1)), "addresses");
    assert_refused(rig.front.set_features(feature::VERSION_1), "features");
    rig.close();
}

/// Whether both are the same eventfd: what is written to one is there to be read from the other.
fn same_event(ours: &OwnedFd, theirs: &OwnedFd) -> bool {
    let mut count = [0; 8];
    write(theirs, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    rustix::io::read(ours, &mut count) == Ok(8)
}

#[test]
fn events_can_be_replaced_while_the_ring_runs() {
    let (mut rig, ..) = running(1);
    rig.device.calls();
    let (kick, call, err) = (event(), event(), event());
    rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd())).unwrap();
    rig.front.vring_fd(code::SET_VRING_CALL, 0, Some(call.as_fd())).unwrap();
    rig.front.vring_fd(code::SET_VRING_ERR, 0, Some(err.as_fd())).unwrap();
    assert_eq!(rig.device.calls(), ["kick 0", "call 0", "err 0"]);
    {
        let state = rig.device.state();
        let queue = &state.started[&0];
        assert!(same_event(&kick, &queue.kick));
        assert!(same_event(&call, queue.call.as_ref().unwrap()));
        assert!(same_event(&err, queue.err.as_ref().unwrap()));
    }
    rig.front.vring_fd(code::SET_VRING_CALL, 0, None).unwrap();
    rig.front.vring_fd(code::SET_VRING_ERR, 0, None).unwrap();
    let state = rig.device.state();
    assert!(state.started[&0].call.is_none() && state.started[&0].err.is_none());
}

#[test]
fn call_and_error_events_outlive_a_stop() {
    let (mut rig, ..) = running(0);
    let (kick, call, err) = (event(), event(), event());
    rig.front.vring_fd(code::SET_VRING_CALL, 0, Some(call.as_fd())).unwrap();
    rig.front.vring_fd(code::SET_VRING_ERR, 0, Some(err.as_fd())).unwrap();
    rig.front.vring_state(code::SET_VRING_NUM, 0, 8).unwrap();
    rig.front.set_vring_addr(0, &ring_addrs(0)).unwrap();
    for _ in 0..2 {
        rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd())).unwrap();
        let state = rig.device.state();
        assert!(same_event(&call, state.started[&0].call.as_ref().unwrap()));
        assert!(same_event(&err, state.started[&0].err.as_ref().unwrap()));
        drop(state);
        rig.front.stop_vring(0).unwrap();
    }
}

// ---- Reset and status ----

#[test]
fn resetting_the_device_stops_its_rings_first_and_keeps_memory_and_protocol() {
    let (mut rig, ..) = running(2);
    rig.device.calls();
    rig.front.reset_device().unwrap();
    assert_eq!(rig.device.calls(), ["stop 0", "stop 1", "reset"]);
    assert_eq!(rig.front.stop_vring(0).unwrap(), 0, "its base is forgotten");
    let kick = event();
    let outcome = rig.front.vring_fd(code::SET_VRING_KICK, 0, Some(kick.as_fd()));
    assert_refused(outcome, "its configuration is forgotten");
    let features = rig.front.features();
    rig.front.set_features(features).unwrap();
    start(&mut rig, 0, 0);
    assert_eq!(rig.device.started(), [0], "its memory is not");
    rig.close();
}

#[test]
fn reset_owner_does_not_touch_the_rings() {
    let (mut rig, ..) = running(1);
    rig.front.request(code::RESET_OWNER, &[], &[]).unwrap();
    assert_eq!(rig.device.started(), [0]);
}

#[test]
fn the_status_is_kept_and_shows_that_the_device_needs_a_reset() {
    let (mut rig, ..) = running(1);
    assert_eq!(rig.front.status().unwrap(), 0);
    rig.front.set_status(0xf).unwrap();
    assert_eq!(rig.front.status().unwrap(), 0xf);
    rig.device.state().needs_reset = true;
    assert_eq!(rig.front.status().unwrap(), 0x4f);
    rig.front.set_status(0x4f).unwrap();
    rig.device.state().needs_reset = false;
    assert_eq!(rig.front.status().unwrap(), 0xf, "the driver cannot set our bit");
    for odd in [0x100, u64::MAX] {
        assert_refused(rig.front.set_status(odd), "not a byte");
    }
}

#[test]
fn status_0_stops_all_rings_and_resets_only_a_device_that_needs_it() {
    let (mut rig, ..) = running(2);
    rig.front.set_status(0xf).unwrap();
    rig.device.calls();
    rig.front.set_status(0).unwrap();
    assert_eq!(rig.device.calls(), ["stop 0", "stop 1"]);
    assert_eq!(rig.front.status().unwrap(), 0);
    start(&mut rig, 0, 3);
    rig.device.state().needs_reset = true;
    rig.device.calls();
    rig.front.set_status(0).unwrap();
    assert_eq!(rig.device.calls(), ["stop 0", "reset"]);
    assert_eq!(rig.front.status().unwrap(), 0);
}

#[test]
fn closing_the_connection_stops_everything() {
    let (rig, ..) = running(3);
    let device = rig.device.clone();
    rig.close();
    assert_eq!(device.calls().last().unwrap(), "end session");
    assert!(device.state().memory.is_none());
}
