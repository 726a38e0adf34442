//! The real device and a driver that breaks its ring: told so, without loss for anybody else, and whole again after a reset.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use device::load::{Command, FIRST_INDEX, QUEUE_SIZE, area, wait_readable};
use device::model::Model;
use device::*;
use io_engine::Rng;
use virtqueue::QueueConfig;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// A descriptor that the sound requests before do not use, the first of those.
const FREE: u16 = 40;
/// Sound requests made available together with the bad one: both fit into one turn of the device.
const SOUND: usize = 8;
const UNMAPPED: u64 = 1 << 40;

/// What a driver does to its ring.
enum Attack {
    /// A chain of these descriptors (address, length, flags, next), the first of which is [`FREE`].
    Chain(&'static [(u64, u32, u16, u16)]),
    /// A head that is none.
    Head(u16),
    /// The head of a request in flight.
    HeadInFlight,
    /// An avail index this far ahead.
    Ahead(u16),
}

const ATTACKS: [(&str, Attack); 14] = [
    ("head 64", Attack::Head(QUEUE_SIZE)),
    ("head 65535", Attack::Head(u16::MAX)),
    ("a head in flight", Attack::HeadInFlight),
    ("index too far ahead", Attack::Ahead(QUEUE_SIZE + 1)),
    ("index behind", Attack::Ahead(u16::MAX)),
    ("next beyond the table", Attack::Chain(&[(0, 16, NEXT, QUEUE_SIZE)])),
    ("loop of one", Attack::Chain(&[(0, 16, NEXT, FREE)])),
    ("loop of two", Attack::Chain(&[(0, 16, NEXT, FREE + 1), (0, 16, NEXT, FREE)])),
    ("readable after writable", Attack::Chain(&[(0, 16, NEXT | WRITE, FREE + 1), (0, 16, 0, 0)])),
    ("no status", Attack::Chain(&[(0, 16, 0, 0)])),
    ("status unmapped", Attack::Chain(&[(0, 16, NEXT, FREE + 1), (UNMAPPED, 1, WRITE, 0)])),
    ("half a header", Attack::Chain(&[(0, 8, NEXT, FREE + 1), (64, 1, WRITE, 0)])),
    ("indirect table of 7 bytes", Attack::Chain(&[(0, 7, INDIRECT, 0)])),
    ("indirect table unmapped", Attack::Chain(&[(UNMAPPED, 32, INDIRECT, 0)])),
];

/// Makes the bad chain available, behind `next` sound ones.
fn attack(client: &Client, config: &QueueConfig, next: u16, attack: &Attack) {
    let (mut head, mut ahead) = (FREE, 1);
    match attack {
        Attack::Chain(descs) => {
            for (index, (addr, len, flags, next)) in (u64::from(FREE)..).zip(*descs) {
                let desc = [&addr.to_le_bytes()[..], &len.to_le_bytes()].concat();
                let desc = [&desc[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat();
                client.write(config.desc.0 + 16 * index, &desc);
            }
        }
        Attack::Head(bad) => head = *bad,
        Attack::HeadInFlight => head = 0,
        Attack::Ahead(by) => ahead = *by,
    }
    let slot = u64::from(next % QUEUE_SIZE);
    client.write(config.avail.0 + 4 + 2 * slot, &head.to_le_bytes());
    client.write(config.avail.0 + 2, &next.wrapping_add(ahead).to_le_bytes());
    iothread::ring(&client.events[0].kick);
}

#[test]
fn a_broken_ring_harms_nobody_but_itself_until_the_reset() {
    for setup in setups().filter(|setup| setup.queues > 1) {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let mut models = host.models();
        for (what, how) in &ATTACKS {
            models = one_attack(&mut client, models, what, how);
        }
        drop(client);
        check_disk(models, &host.stop());
    }
}

fn one_attack(client: &mut Client, mut models: Vec<Model>, what: &str, how: &Attack) -> Vec<Model> {
    let victim = models.remove(0);
    let others: Vec<_> = (1..).zip(models).map(|(i, model)| client.drive(i, model)).collect();
    let mut load = client.load(0, victim)();
    let config = load.config();
    client.start_ring(0, &config, FIRST_INDEX);
    // Nobody can ask for answers to what lies between here and an index that is nonsense.
    let sound = if matches!(how, Attack::Ahead(_)) { 0 } else { SOUND };
    while load.in_flight() < sound {
        load.add();
    }
    attack(client, &config, load.next_avail(), how);

    wait_readable(&[&client.events[0].err], what);
    assert!(client.needs_reset(), "{what}");
    load.drain(&client.events[0].call);
    for other in &others {
        other.wait_answers(5);
    }
    let used = load.next_avail();
    assert_eq!(client.used_index(&config), used, "{what}: nothing of it is answered");
    // Neither a sound chain behind it nor what a VMM does to pause and move a guest revives the ring.
    assert!(load.add());
    let slot = |index: u16| config.avail.0 + 4 + 2 * u64::from(index % QUEUE_SIZE);
    let head = client.read_u16(slot(used));
    client.write(slot(used.wrapping_add(1)), &head.to_le_bytes());
    client.write(config.avail.0 + 2, &used.wrapping_add(2).to_le_bytes());
    client.front.enable_vring(0, false).unwrap();
    client.front.enable_vring(0, true).unwrap();
    client.set_mem_table().unwrap();
    iothread::ring(&client.events[0].kick);
    let base = client.front.stop_vring(0).unwrap();
    assert!(base.wrapping_sub(used) <= 1, "{what}: base {base}, used {used}");
    assert!(client.needs_reset(), "{what}: stopping its ring does not mend a device");

    client.reset();
    assert!(!client.needs_reset(), "{what}");
    let mut models = vec![load.abandon()];
    models.extend(abandon(others));
    let drivers = client.drive_all(models);
    drivers.iter().for_each(|driver| driver.wait_answers(5));
    assert!(!take_event(&client.events[0].err), "{what}: the ring is sound again");
    client.reset();
    abandon(drivers)
}

#[test]
fn the_driver_resets_a_broken_device_by_its_status_as_well() {
    let host = Host::start(PLAIN).unwrap();
    let mut client = host.client();
    let drivers = client.drive_all(host.models());
    client.front.set_status(0xf).unwrap();
    drivers[0].wait_answers(5);
    drivers[0].ask(Command::Pause);
    client.write(drivers[0].config.avail.0 + 2, &0x7fffu16.to_le_bytes());
    iothread::ring(&client.events[0].kick);
    wait_readable(&[&client.events[0].err], "the ring is broken");
    assert_eq!(client.front.status().unwrap(), 0x4f);
    client.front.set_status(0).unwrap();
    assert_eq!(client.front.status().unwrap(), 0);
    let drivers = client.drive_all(abandon(drivers));
    drivers.iter().for_each(|driver| driver.wait_answers(5));
    let models = finish(drivers);
    drop(client);
    check_disk(models, &host.stop());
}

/// A word of a descriptor that is likely to get through the first checks.
fn plausible_desc(rng: &mut Rng) -> Vec<u8> {
    let addr = rng.below(area(1)) & !(rng.below(2) * 511);
    let len = [0, 1, 16, 512, 4096, u32::MAX][rng.index(6)];
    let flags = u16::try_from(rng.below(8)).unwrap();
    let next = u16::try_from(rng.below(u64::from(QUEUE_SIZE) + 1)).unwrap();
    let desc = [&addr.to_le_bytes()[..], &len.to_le_bytes()].concat();
    [&desc[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

#[test]
fn garbage_all_over_the_ring_breaks_nothing_that_a_reset_does_not_mend() {
    let setup = Setup { queues: 1, ..PLAIN };
    let host = Host::start(setup).unwrap();
    let mut client = host.client();
    let mut rng = Rng::new(11);
    let mut broken = 0;
    for _ in 0..200 {
        let load = client.load(0, Model::new(0, 1, SECTORS))();
        let config = load.config();
        client.start_ring(0, &config, FIRST_INDEX);
        for _ in 0..4 {
            for index in 0..u64::from(QUEUE_SIZE) {
                client.write(config.desc.0 + 16 * index, &plausible_desc(&mut rng));
                let head = u16::try_from(rng.below(u64::from(QUEUE_SIZE))).unwrap();
                client.write(config.avail.0 + 4 + 2 * index, &head.to_le_bytes());
            }
            let ahead = u16::try_from(rng.below(u64::from(QUEUE_SIZE))).unwrap();
            let index = client.used_index(&config).wrapping_add(ahead);
            client.write(config.avail.0 + 2, &index.to_le_bytes());
            iothread::ring(&client.events[0].kick);
        }
        let _ = client.front.stop_vring(0).unwrap();
        broken += u32::from(client.needs_reset());
        client.reset();
        assert!(!client.needs_reset());
    }
    println!("{broken} of 200 rounds broke the ring");
    // The garbage may have written anywhere: only what is written from now on can be told.
    let mut model = Model::new(0, 1, SECTORS);
    (0..SECTORS).for_each(|index| model.spoiled(index));
    let driver = client.drive(0, model);
    driver.wait_answers(200);
    let models = finish(vec![driver]);
    drop(client);
    check_disk(models, &host.stop());
}
