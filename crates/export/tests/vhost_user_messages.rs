//! What a session makes of single messages: their headers, sizes, file descriptors and order.

#![allow(missing_docs, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;

use common::*;
use export::vhost_user::message::{FDS_MAX, PAYLOAD_MAX, Payload, ProtocolFeatures, code};
use export::vhost_user::{Connection, ErrorKind, Session, feature};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::pipe;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Every request, and the payload of a well-formed message.
fn requests() -> Vec<(u32, Vec<u8>, usize)> {
    let state = || Payload::new().u32(0).u32(0).done();
    let number = || Payload::new().u64(0).done();
    let (spec, _) = region();
    let one_region = Payload::new().u64(0).region(&spec).done();
    let table = Payload::new().u32(1).u32(0).region(&spec).done();
    let config = Payload::new().u32(32).u32(1).u32(0).bytes(&[1]).done();
    vec![
        (code::GET_FEATURES, vec![], 0),
        (code::SET_FEATURES, number(), 0),
        (code::SET_OWNER, vec![], 0),
        (code::RESET_OWNER, vec![], 0),
        (code::SET_MEM_TABLE, table, 1),
        (code::SET_VRING_NUM, state(), 0),
        (code::SET_VRING_ADDR, vec![0; 40], 0),
        (code::SET_VRING_BASE, state(), 0),
        (code::GET_VRING_BASE, state(), 0),
        (code::SET_VRING_KICK, number(), 1),
        (code::SET_VRING_CALL, number(), 1),
        (code::SET_VRING_ERR, number(), 1),
        (code::GET_PROTOCOL_FEATURES, vec![], 0),
        (code::SET_PROTOCOL_FEATURES, number(), 0),
        (code::GET_QUEUE_NUM, vec![], 0),
        (code::SET_VRING_ENABLE, state(), 0),
        (code::SET_BACKEND_REQ_FD, vec![], 1),
        (code::GET_CONFIG, config.clone(), 0),
        (code::SET_CONFIG, config, 0),
        (code::RESET_DEVICE, vec![], 0),
        (code::GET_MAX_MEM_SLOTS, vec![], 0),
        (code::ADD_MEM_REG, one_region.clone(), 1),
        (code::REM_MEM_REG, one_region, 0),
        (code::SET_STATUS, number(), 0),
        (code::GET_STATUS, vec![], 0),
    ]
}

/// Requests that cannot be acknowledged; refusing one ends the session, except for `GET_CONFIG`.
const WITH_REPLY: [u32; 6] = [
    code::GET_FEATURES,
    code::GET_PROTOCOL_FEATURES,
    code::GET_VRING_BASE,
    code::GET_QUEUE_NUM,
    code::GET_MAX_MEM_SLOTS,
    code::GET_STATUS,
];

/// Sends a message that must be refused, and checks that it is in the way its kind demands.
fn assert_message_refused(request: u32, payload: &[u8], fds: &[BorrowedFd<'_>], what: &str) {
    let what = format!("request {request}, {what}");
    let mut rig = Rig::negotiated();
    if WITH_REPLY.contains(&request) {
        rig.front.send(request, true, payload, fds).unwrap();
        assert_eq!(rig.ended().kind(), ErrorKind::Refused, "{what}");
    } else if request == code::GET_CONFIG {
        assert_eq!(rig.front.call(request, payload, fds).unwrap(), [], "{what}");
        rig.assert_alive(&what);
    } else {
        assert_refused(rig.front.request(request, payload, fds), &what);
        rig.assert_alive(&what);
        assert_eq!(rig.device.calls(), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_payload_one_byte_too_short_or_too_long_is_refused() {
    let (_, memory) = region();
    for (request, payload, fd_count) in requests() {
        let fds = vec![memory.as_fd(); fd_count];
        let long = [&payload[..], &[0]].concat();
        assert_message_refused(request, &long, &fds, "a byte too long");
        if let Some((_, short)) = payload.split_last() {
            assert_message_refused(request, short, &fds, "a byte too short");
            assert_message_refused(request, &[], &fds, "empty");
        }
        assert_message_refused(request, &vec![0; PAYLOAD_MAX], &fds, "the longest of all");
    }
}

#[test]
fn too_few_or_too_many_file_descriptors_are_refused() {
    let (_, memory) = region();
    for (request, payload, expected) in requests() {
        for count in [0, 1, 2, 9, FDS_MAX] {
            // Removing a region with its file is tolerated, as the specification demands.
            if count == expected || (request == code::REM_MEM_REG && count == 1) {
                continue;
            }
            let fds = vec![memory.as_fd(); count];
            assert_message_refused(request, &payload, &fds, &format!("{count} fds"));
        }
    }
}

#[test]
fn a_header_of_another_version_or_with_unknown_flags_ends_the_session() {
    for flags in [0u32, 2, 3, 8, 1 | 1 << 4, 1 | 1 << 31, u32::MAX] {
        let mut rig = Rig::negotiated();
        let header = Payload::new().u32(code::GET_FEATURES).u32(flags).u32(0).done();
        rig.front.send_bytes(&header, &[]).unwrap();
        assert!(rig.front.is_dropped(), "flags {flags:#x}");
        assert_eq!(rig.ended().kind(), ErrorKind::Protocol, "flags {flags:#x}");
    }
}

#[test]
fn a_reply_from_the_front_end_ends_the_session() {
    let mut rig = Rig::negotiated();
    let header = Payload::new().u32(code::SET_OWNER).u32(1 | 4).u32(0).done();
    rig.front.send_bytes(&header, &[]).unwrap();
    assert_eq!(rig.ended().kind(), ErrorKind::Protocol);
}

#[test]
fn a_payload_longer_than_the_limit_ends_the_session_unread() {
    for size in [4097, 1 << 16, u32::MAX] {
        let mut rig = Rig::negotiated();
        let header = Payload::new().u32(code::SET_FEATURES).u32(1).u32(size).done();
        rig.front.send_bytes(&header, &[]).unwrap();
        assert_eq!(rig.ended().kind(), ErrorKind::Protocol, "{size}");
    }
}

#[test]
fn an_unknown_request_is_refused_if_it_can_be_and_ends_the_session_otherwise() {
    // 6, 7: logging. 31, 32: in-flight tracking. 28 to 30: postcopy. None of them is offered.
    for request in [0, 6, 7, 19, 22, 23, 28, 29, 30, 31, 32, 35, 41, 42, 43, 1000, u32::MAX] {
        let mut rig = Rig::negotiated();
        assert_refused(rig.front.request(request, &[1, 2, 3], &[]), "with acknowledgements");
        rig.assert_alive("unknown request");
        rig.front.send(request, false, &[], &[]).unwrap();
        assert_eq!(rig.ended().kind(), ErrorKind::Refused, "request {request}");
    }
}

#[test]
fn without_acknowledgements_a_refusal_ends_the_session() {
    let mut rig = Rig::without_ack();
    // The flag alone is not enough: it must have been negotiated.
    rig.front.send(code::SET_FEATURES, true, &[0xff; 8], &[]).unwrap();
    assert!(rig.front.is_dropped());
    assert_eq!(rig.ended().kind(), ErrorKind::Refused);
}

#[test]
fn without_acknowledgements_no_message_is_acknowledged() {
    let mut rig = Rig::without_ack();
    let features = rig.front.features();
    rig.front.send(code::SET_FEATURES, true, &features.to_le_bytes(), &[]).unwrap();
    rig.assert_alive("an acknowledgement would have come first");
}

#[test]
fn the_request_that_negotiates_acknowledgements_is_acknowledged_itself() {
    let mut rig = Rig::new();
    let bits = ProtocolFeatures::REPLY_ACK.bits().to_le_bytes();
    rig.front.send(code::SET_PROTOCOL_FEATURES, true, &bits, &[]).unwrap();
    assert_eq!(rig.front.receive(code::SET_PROTOCOL_FEATURES).unwrap(), [0; 8]);
}

#[test]
fn a_request_with_a_reply_is_not_acknowledged_on_top() {
    let mut rig = Rig::negotiated();
    rig.front.send(code::GET_QUEUE_NUM, true, &[], &[]).unwrap();
    assert_eq!(rig.front.receive(code::GET_QUEUE_NUM).unwrap(), 3u64.to_le_bytes());
    rig.assert_alive("an acknowledgement would have come first");
}

#[test]
fn a_message_may_arrive_byte_by_byte_and_its_fds_with_the_first() {
    // Driven from here, turn by turn, so that each byte really arrives alone.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = FakeDevice::default();
    let mut session = Session::new(Connection::new(theirs), &mut device);
    let mut front = export::vhost_user::frontend::FrontEnd::new(ours);
    let (spec, memory) = region();
    let payload = Payload::new().u32(1).u32(0).region(&spec).done();
    let header = Payload::new().u32(code::SET_MEM_TABLE).u32(1).u32(40).done();
    for (i, byte) in [header, payload].concat().iter().enumerate() {
        let fds = [memory.as_fd()];
        front.send_bytes(&[*byte], if i == 0 { &fds } else { &[] }).unwrap();
        session.turn().unwrap();
        assert_eq!(session.time_left().is_some(), i != 51, "a started message has a deadline");
    }
    drop(session);
    assert_eq!(device.calls(), ["memory 1", "end session"]);
}

#[test]
fn two_messages_in_one_write_are_two_messages() {
    let mut rig = Rig::negotiated();
    let one = Payload::new().u32(code::GET_QUEUE_NUM).u32(1).u32(0).done();
    let two = Payload::new().u32(code::GET_MAX_MEM_SLOTS).u32(1).u32(0).done();
    rig.front.send_bytes(&[one, two].concat(), &[]).unwrap();
    assert_eq!(rig.front.receive(code::GET_QUEUE_NUM).unwrap(), 3u64.to_le_bytes());
    assert_eq!(rig.front.receive(code::GET_MAX_MEM_SLOTS).unwrap(), 509u64.to_le_bytes());
}

#[test]
fn the_end_of_the_stream_in_the_middle_of_a_message_is_a_breach() {
    let whole = Payload::new().u32(code::SET_FEATURES).u32(1).u32(8).u64(0).done();
    for len in [1, 11, 12, 19] {
        let mut rig = Rig::negotiated();
        rig.front.send_bytes(&whole[..len], &[]).unwrap();
        let Rig { front, .. } = &mut rig;
        let (fresh, _) = UnixStream::pair().unwrap();
        *front = export::vhost_user::frontend::FrontEnd::new(fresh);
        assert_eq!(rig.ended().kind(), ErrorKind::Protocol, "{len} bytes");
    }
}

#[test]
fn file_descriptors_in_the_middle_of_a_message_end_the_session() {
    let mut rig = Rig::negotiated();
    let memory = memfd(4096);
    let header = Payload::new().u32(code::SET_MEM_TABLE).u32(1).u32(40).done();
    rig.front.send_bytes(&header, &[]).unwrap();
    rig.front.send_bytes(&[0; 40], &[memory.as_fd()]).unwrap();
    assert_eq!(rig.ended().kind(), ErrorKind::Protocol);
}

#[test]
fn a_message_that_stops_half_way_costs_its_sender_the_session() {
    let mut rig = Rig::with_time_limit(Duration::from_millis(20));
    rig.front.send_bytes(&[1, 0, 0], &[]).unwrap();
    assert_eq!(rig.ended().kind(), ErrorKind::TimedOut);
}

#[test]
fn silence_between_messages_costs_nothing() {
    let mut rig = Rig::with_time_limit(Duration::ZERO);
    for _ in 0..3 {
        // A limit of nothing at all: it must not run while no message has begun.
        rig.assert_alive("idle");
    }
    rig.close();
}

#[test]
fn a_front_end_that_never_reads_replies_costs_itself_the_session() {
    let mut rig = Rig::with_time_limit(Duration::from_millis(20));
    let request = Payload::new().u32(code::GET_FEATURES).u32(1).u32(0).done();
    // Ends when the back end has given up and closed.
    while rig.front.send_bytes(&request, &[]).is_ok() {}
    assert_eq!(rig.ended().kind(), ErrorKind::TimedOut);
}

// ---- File descriptors of the wrong kind ----

/// Descriptors that are no event's, with a name each.
fn not_events() -> Vec<(&'static str, OwnedFd)> {
    let path = |path: &str, flags| open(path, flags, Mode::empty()).unwrap();
    vec![
        ("regular file", memfd(4096)),
        ("directory", path("/", OFlags::RDONLY)),
        ("character device", path("/dev/null", OFlags::RDWR)),
        ("O_PATH", path("/dev/null", OFlags::PATH)),
        ("socket", UnixStream::pair().unwrap().0.into()),
    ]
}

#[test]
fn events_must_be_eventfds_or_pipes_open_for_their_use() {
    let (mut rig, ..) = running(1);
    let (reader, writer) = pipe().unwrap();
    let event = event();
    for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
        for (what, fd) in not_events() {
            assert_refused(rig.front.vring_fd(request, 0, Some(fd.as_fd())), what);
        }
        let (good, bad) = match request {
            code::SET_VRING_KICK => (&reader, &writer),
            _ => (&writer, &reader),
        };
        assert_refused(rig.front.vring_fd(request, 0, Some(bad.as_fd())), "the pipe's wrong end");
        rig.front.vring_fd(request, 0, Some(good.as_fd())).unwrap();
        rig.front.vring_fd(request, 0, Some(event.as_fd())).unwrap();
    }
    rig.close();
}

#[test]
fn memory_must_be_a_writable_regular_file() {
    let mut rig = Rig::negotiated();
    let (spec, memory) = region();
    let read_only = open(
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory)),
        OFlags::RDONLY,
        Mode::empty(),
    )
    .unwrap();
    let mut bad = not_events();
    bad.retain(|(what, _)| *what != "regular file");
    bad.push(("read-only memfd", read_only));
    bad.push(("eventfd", event()));
    bad.push(("pipe", pipe().unwrap().0));
    for (what, fd) in bad {
        assert_refused(rig.front.set_mem_table(&[(spec, fd.as_fd())]), what);
        assert_refused(rig.front.add_region(&spec, fd.as_fd()), what);
    }
    assert_eq!(rig.device.calls(), Vec::<String>::new());
    rig.front.add_region(&spec, memory.as_fd()).unwrap();
}

#[test]
fn the_back_end_channel_must_be_a_unix_stream_socket() {
    let mut rig = Rig::negotiated();
    let (dgram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bad = not_events();
    bad.retain(|(what, _)| *what != "socket");
    bad.extend([("datagram", dgram.into()), ("tcp", tcp.into()), ("eventfd", event())]);
    for (what, fd) in bad {
        let fds = [fd.as_fd()];
        assert_refused(rig.front.request(code::SET_BACKEND_REQ_FD, &[], &fds), what);
    }
    rig.front.open_channel().unwrap();
}

// ---- Negotiation and order ----

#[test]
fn what_needs_a_protocol_feature_is_refused_without_it() {
    let (spec, memory) = region();
    for (request, payload, fd_count) in requests() {
        let needed = match request {
            code::GET_CONFIG | code::SET_CONFIG => ProtocolFeatures::CONFIG,
            code::SET_BACKEND_REQ_FD => ProtocolFeatures::BACKEND_REQ,
            code::RESET_DEVICE => ProtocolFeatures::RESET_DEVICE,
            code::GET_STATUS | code::SET_STATUS => ProtocolFeatures::STATUS,
            code::GET_MAX_MEM_SLOTS | code::ADD_MEM_REG | code::REM_MEM_REG => {
                ProtocolFeatures::CONFIGURE_MEM_SLOTS
            }
            _ => continue,
        };
        let mut rig = Rig::new();
        let protocol = ProtocolFeatures::OFFERED.difference(needed);
        rig.front.handshake(u64::MAX, protocol).unwrap();
        if request == code::REM_MEM_REG {
            rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
        }
        let fds = vec![memory.as_fd(); fd_count];
        match request {
            code::GET_CONFIG => assert_eq!(rig.front.call(request, &payload, &[]).unwrap(), []),
            code::GET_STATUS | code::GET_MAX_MEM_SLOTS => {
                rig.front.send(request, true, &payload, &fds).unwrap();
                assert_eq!(rig.ended().kind(), ErrorKind::Refused, "request {request}");
                continue;
            }
            _ => assert_refused(rig.front.request(request, &payload, &fds), &request.to_string()),
        }
        rig.assert_alive("after the refusal");
    }
}

#[test]
fn bits_that_were_not_offered_are_refused() {
    let mut rig = Rig::negotiated();
    for bit in 0..64 {
        let bit = 1u64 << bit;
        if rig.front.get_features().unwrap() & bit == 0 {
            assert_refused(rig.front.set_features(bit), &format!("feature {bit:#x}"));
        }
        if ProtocolFeatures::OFFERED.bits() & bit == 0 {
            let payload = (bit | ProtocolFeatures::REPLY_ACK.bits()).to_le_bytes();
            let outcome = rig.front.request(code::SET_PROTOCOL_FEATURES, &payload, &[]);
            assert_refused(outcome, &format!("protocol feature {bit:#x}"));
        }
    }
}

#[test]
fn features_that_need_what_is_not_offered_are_masked() {
    let mut rig = Rig::new();
    let offered = rig.front.get_features().unwrap();
    assert_eq!(FEATURES & feature::LOG_ALL, feature::LOG_ALL, "the device would");
    assert_eq!(offered & (feature::LOG_ALL | feature::IOMMU_PLATFORM), 0);
    assert_ne!(offered & feature::PROTOCOL_FEATURES, 0);
    assert_ne!(offered & feature::VERSION_1, 0);
}

#[test]
fn a_second_owner_is_refused_until_the_first_is_reset() {
    let mut rig = Rig::negotiated();
    assert_refused(rig.front.request(code::SET_OWNER, &[], &[]), "second");
    rig.front.request(code::RESET_OWNER, &[], &[]).unwrap();
    rig.front.request(code::SET_OWNER, &[], &[]).unwrap();
}

#[test]
fn everything_works_without_an_owner() {
    let mut rig = Rig::new();
    let protocol = ProtocolFeatures::OFFERED;
    rig.front.set_protocol_features(protocol).unwrap();
    rig.front.set_features(feature::VERSION_1 | feature::PROTOCOL_FEATURES).unwrap();
    let (spec, memory) = region();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    start(&mut rig, 0, 0);
    assert_eq!(rig.device.started(), [0]);
    rig.close();
}

#[test]
fn refusals_go_on_for_ever_without_harm() {
    let mut rig = Rig::negotiated();
    for _ in 0..1000 {
        assert_refused(rig.front.request(code::SET_VRING_ENABLE, &[0xff; 8], &[]), "storm");
    }
    rig.close();
}

// ---- Configuration space ----

#[test]
fn the_configuration_space_is_read_within_256_bytes_and_refused_beyond() {
    let mut rig = Rig::negotiated();
    for (offset, len) in [(0, 60), (59, 1), (10, 100), (0, 256), (255, 1), (60, 4)] {
        let expected: Vec<u8> =
            (offset..offset + len).map(|i| if i < 60 { i as u8 } else { 0 }).collect();
        assert_eq!(rig.front.read_config(offset, len).unwrap(), expected, "{offset}+{len}");
    }
    for (offset, len) in [(0, 0), (0, 257), (256, 1), (255, 2), (u32::MAX, 1), (1, 1024)] {
        assert_refused(rig.front.read_config(offset, len), &format!("{offset}+{len}"));
    }
    let odd_flags = Payload::new().u32(0).u32(1).u32(2).bytes(&[0]).done();
    assert_eq!(rig.front.call(code::GET_CONFIG, &odd_flags, &[]).unwrap(), []);
    rig.close();
}

#[test]
fn the_configuration_space_is_written_where_the_device_lets_it() {
    let mut rig = Rig::negotiated();
    rig.front.write_config(32, &[1]).unwrap();
    assert_eq!(rig.front.read_config(32, 1).unwrap(), [1]);
    for (offset, data) in [(32, vec![2]), (0, vec![0; 8]), (32, vec![0, 0]), (250, vec![0; 7])] {
        assert_refused(rig.front.write_config(offset, &data), &format!("{offset}"));
    }
    let lying = Payload::new().u32(32).u32(2).u32(0).bytes(&[1]).done();
    assert_refused(rig.front.request(code::SET_CONFIG, &lying, &[]), "size is not the data's");
    let odd_flags = Payload::new().u32(32).u32(1).u32(4).bytes(&[1]).done();
    assert_refused(rig.front.request(code::SET_CONFIG, &odd_flags, &[]), "flags");
    assert_eq!(rig.front.read_config(32, 1).unwrap(), [1]);
}
