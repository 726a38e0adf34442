//! Images whose reference counts are not true, or where two entries lead to one cluster. No look at one entry shows that; so what a guest reads there
//! may be what it wrote elsewhere. But what it writes never lands in a table.

use super::*;

/// Writes a lot, in place and to new clusters, with the slices of all tables in RAM from the start; then closes. Nothing panics, and no table has
/// the guest's bytes.
fn use_it(name: &str, image: &Craft) -> Craft {
    let dir = Dir::new();
    let path = make(&dir, image);
    let (cluster, entries) = (image.shape.cluster(), image.shape.entries());
    let disk = Disk::open(&path, WAY, false).unwrap_or_else(|error| panic!("{name}: {error}"));
    // What is looked up now is not looked at again.
    let _ = disk.read(0, cluster);
    let _ = disk.read(entries * cluster, cluster);
    let guest = vec![GUEST; cluster as usize];
    for round in 0..4 {
        for n in 0..8 {
            if disk.is_poisoned() {
                break;
            }
            let _ = disk.write((16 + round * 8 + n) * cluster, &guest);
            let _ = disk.write((entries + round * 8 + n) * cluster, &guest);
            let _ = disk.write(n % 2 * cluster, &guest);
        }
        if round == 1 && !disk.is_poisoned() {
            let _ = disk.discard(cluster, cluster);
        }
        if !disk.is_poisoned() {
            let _ = disk.flush();
        }
        let found = guest_bytes_in_tables(&path, image.shape);
        assert_eq!(found, None, "{name}: round {round}");
    }
    let _ = disk.close();
    assert_eq!(guest_bytes_in_tables(&path, image.shape), None, "{name}");
    Craft { bytes: std::fs::read(&path).unwrap(), shape: image.shape }
}

#[test]
fn two_entries_that_lead_to_one_cluster() {
    for shape in shapes() {
        for count in [1, 2] {
            let mut image = Craft::new(shape);
            image.set_l2(9, shape.at(DATA[0]) | COPIED);
            image.set_bits(9, 0xFFFF_FFFF);
            image.set_l2(shape.entries() + 1, shape.at(DATA[1]) | COPIED);
            image.set_bits(shape.entries() + 1, 0xFFFF_FFFF);
            // Either could be true of a count of one bit: there is no two.
            let count = count.min((1u64 << (1 << shape.order.min(2))) - 1);
            image.set_count(DATA[0], count);
            image.set_count(DATA[1], count);
            use_it(&format!("{shape:?}: shared, counted {count}"), &image);
        }
    }
}

#[test]
fn a_count_of_none_for_what_is_in_use() {
    for shape in shapes() {
        // Of data, and with and without a table that has to be made.
        for (data, makes_table) in [(0, false), (1, false), (0, true), (1, true)] {
            let mut image = Craft::new(shape);
            image.set_count(DATA[data], 0);
            if makes_table {
                image.set_l1(1, 0);
                image.set_count(L2[1], 0);
            }
            use_it(&format!("{shape:?}: data {data} is counted as free, {makes_table}"), &image);
        }
        for (what, cluster) in [
            ("the header", 0),
            ("the refcount table", REFCOUNT_TABLE),
            ("the refcount block", REFCOUNT_BLOCK),
            ("the L1 table", L1),
            ("an L2 table", L2[0]),
            ("compressed data", COMPRESSED),
            ("the snapshot table", SNAPSHOT_TABLE),
            ("a snapshot's L1 table", SNAPSHOT_L1),
            ("a snapshot's L2 table", SNAPSHOT_L2),
            ("a snapshot's data", SNAPSHOT_DATA),
        ] {
            if cluster >= shape.file_clusters() {
                continue;
            }
            let mut image = Craft::new(shape);
            image.set_count(cluster, 0);
            let after = use_it(&format!("{shape:?}: {what} is counted as free"), &image);
            if [SNAPSHOT_TABLE, SNAPSHOT_L1].contains(&cluster) {
                let range = shape.at(cluster) as usize..shape.at(cluster + 1) as usize;
                let is_whole = after.bytes[range.clone()] == image.bytes[range];
                assert!(is_whole, "{shape:?}: {what} was overwritten");
            }
        }
    }
}

#[test]
fn counts_that_are_too_high_are_leaks_and_no_more() {
    for shape in shapes() {
        let max = match shape.order {
            6 => u64::MAX,
            order => (1 << (1u64 << order)) - 1,
        };
        for cluster in [0, REFCOUNT_BLOCK, L1, L2[0], DATA[0], COMPRESSED] {
            let mut image = Craft::new(shape);
            image.set_count(cluster, max);
            let name = format!("{shape:?}: cluster {cluster} is counted {max} times");
            reads_good(&name, &image);
            write_one(&name, &image);
            use_it(&name, &image);
        }
    }
}

#[test]
fn counts_of_what_is_beyond_the_file_keep_it_from_being_used() {
    // Files of gigabytes are for another test.
    for shape in shapes().into_iter().filter(|shape| shape.cluster_bits <= 12) {
        // The last that the block counts.
        let last = ((shape.cluster() * 8) >> shape.order) - 1;
        for counted in [shape.file_clusters(), last] {
            let mut image = Craft::new(shape);
            image.set_count(counted, 1);
            let name = format!("{shape:?}: cluster {counted} is counted");
            reads_good(&name, &image);
            let after = write_one(&name, &image);
            let entry = after.get64(shape.entry_at(7) as usize);
            assert_ne!(entry & !COPIED, shape.at(counted), "{name}, and used");
        }
    }
}

#[test]
fn a_table_that_comes_to_stand_where_an_entry_leads_to_is_not_written_to_as_data() {
    for shape in shapes().into_iter().filter(|shape| shape.cluster_bits <= 14) {
        let mut image = Craft::new(shape);
        // Both clusters of data are free, it says; and table 1 has to be made.
        image.set_l1(1, 0);
        DATA.into_iter().for_each(|cluster| image.set_count(cluster, 0));
        let dir = Dir::new();
        let path = make(&dir, &image);
        let disk = Disk::open(&path, WAY, false).unwrap();
        let cluster = shape.cluster();
        let guest = vec![GUEST; cluster as usize];
        disk.read(0, 2 * cluster).unwrap();
        for n in 0..32 {
            // What is found free is used; sooner or later a table stands there.
            let _ = disk.write((16 + n) * cluster, &guest);
            let _ = disk.flush();
            let _ = disk.write((shape.entries() + n) * cluster, &guest);
            let _ = disk.flush();
            if disk.is_poisoned() {
                break;
            }
            let _ = disk.write(0, &guest);
            let _ = disk.write(cluster, &guest);
            let found = guest_bytes_in_tables(&path, shape);
            assert_eq!(found, None, "{shape:?}: round {n}");
        }
        let _ = disk.close();
    }
}
