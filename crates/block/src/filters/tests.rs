#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use super::*;

fn inject(event: Event) -> Rule {
    let action = Action::Inject { errno: 5, kind: None, sector: None, once: false };
    Rule { event, state: 0, action }
}

fn set_state(event: Event, state: u64, new: u64) -> Rule {
    Rule { event, state, action: Action::SetState(new) }
}

fn write(faults: &Faults, sector: u64) -> Option<i32> {
    faults.check(IoKind::Write, sector * 512, 512).err().and_then(|error| error.raw_os_error())
}

#[test]
fn nothing_fails_before_its_event() {
    let faults = Faults::new(vec![inject(Event::L2Update)]);
    assert_eq!(write(&faults, 0), None);
    faults.event(Event::L2Load);
    assert_eq!(write(&faults, 0), None);
    faults.event(Event::L2Update);
    // And from then on everything.
    assert_eq!(write(&faults, 0), Some(5));
    faults.event(Event::L2Load);
    assert_eq!(write(&faults, 9), Some(5));
    assert!(faults.check(IoKind::Flush, 0, 0).is_err());
}

#[test]
fn the_event_none_is_there_from_the_start() {
    assert_eq!(write(&Faults::new(vec![inject(Event::None)]), 0), Some(5));
    assert_eq!(write(&Faults::new(vec![inject(Event::Never)]), 0), None);
}

#[test]
fn once_is_once_and_not_once_an_event() {
    let action = Action::Inject { errno: 28, kind: None, sector: None, once: true };
    let faults = Faults::new(vec![Rule { event: Event::WriteAio, state: 0, action }]);
    faults.event(Event::WriteAio);
    assert_eq!((write(&faults, 0), write(&faults, 0)), (Some(28), None));
    faults.event(Event::WriteAio);
    assert_eq!(write(&faults, 0), None);
}

#[test]
fn a_sector_and_a_kind() {
    let action =
        Action::Inject { errno: 5, kind: Some(IoKind::Write), sector: Some(4), once: false };
    let faults = Faults::new(vec![Rule { event: Event::None, state: 0, action }]);
    assert_eq!((write(&faults, 3), write(&faults, 4), write(&faults, 5)), (None, Some(5), None));
    // The last byte before it, its first byte, its first byte as the last.
    assert!(faults.check(IoKind::Write, 0, 4 * 512).is_ok());
    assert!(faults.check(IoKind::Write, 0, 4 * 512 + 1).is_err());
    for kind in [IoKind::Read, IoKind::Discard, IoKind::WriteZeroes, IoKind::BlockStatus] {
        assert!(faults.check(kind, 4 * 512, 512).is_ok());
    }
    assert!(faults.check(IoKind::Flush, 4 * 512, 0).is_ok());
    let action = Action::Inject { errno: 5, kind: None, sector: Some(u64::MAX), once: false };
    let faults = Faults::new(vec![Rule { event: Event::None, state: 0, action }]);
    assert!(faults.check(IoKind::Write, 0, u64::MAX).is_ok());
}

#[test]
fn active_rules_are_replaced_by_those_of_the_next_event_that_has_some() {
    let at = |event, sector| {
        let action = Action::Inject { errno: 5, kind: None, sector: Some(sector), once: false };
        Rule { event, state: 0, action }
    };
    let faults = Faults::new(vec![at(Event::None, 1), at(Event::L2Load, 2), at(Event::L2Load, 3)]);
    let failing =
        |faults: &Faults| (0..5).filter(|n| write(faults, *n).is_some()).collect::<Vec<_>>();
    assert_eq!(failing(&faults), [1]);
    faults.event(Event::ReadAio);
    assert_eq!(failing(&faults), [1]);
    faults.event(Event::L2Load);
    assert_eq!(failing(&faults), [2, 3]);
}

#[test]
fn states_go_on_step_by_step() {
    let mut last = inject(Event::WriteAio);
    last.state = 3;
    let faults =
        Faults::new(vec![set_state(Event::WriteAio, 1, 2), set_state(Event::WriteAio, 2, 3), last]);
    let step = || {
        faults.event(Event::WriteAio);
        write(&faults, 0)
    };
    // An event finds the rules of the state that it comes in.
    assert_eq!([step(), step(), step()], [None, None, Some(5)]);
}

#[test]
fn an_error_of_zero_shields_from_the_rules_behind_it() {
    let action = Action::Inject { errno: 0, kind: None, sector: Some(7), once: false };
    let shield = Rule { event: Event::None, state: 0, action };
    let faults = Faults::new(vec![shield, inject(Event::None)]);
    assert_eq!((write(&faults, 6), write(&faults, 7)), (Some(5), None));
}

#[test]
fn every_event_has_one_name() {
    let mut names: Vec<&str> = Event::FIRING.iter().map(|(name, _)| *name).collect();
    names.extend(NEVER);
    for name in &names {
        let event: Event = name.parse().unwrap();
        assert_eq!(event == Event::Never, NEVER.contains(name));
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!("l3_update".parse::<Event>(), Err(UnknownEvent));
}

#[test]
fn the_documentation_names_every_event() {
    let text = include_str!("../../../../docs/faults.md");
    let names = Event::FIRING.iter().map(|(name, _)| *name).chain(NEVER.iter().copied());
    let names = names.chain(IoKind::NAMES.iter().map(|(name, _)| *name));
    let absent: Vec<&str> = names.filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert_eq!(absent, [""; 0]);
}
