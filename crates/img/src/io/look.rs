//! Commands that look at an image or change it as a whole: `alloc`, `map`, `info`, `length`, `flush`, `discard`, `truncate`.

use super::disk::Disk;
use super::report::{size, size_of};
use super::transfer::Showing;
use super::{Call, REQUEST_MAX, Shell, Stop};
use crate::info::qcow2_specific;
use crate::preallocate::preallocate;
use crate::{Failure, Preallocation};
use block::{Format, Result as BlockResult, SECTOR};

/// Runs that are found before they are printed.
const BATCH: usize = 4096;

/// `alloc`: how much of a range the image itself has a say in.
pub(super) fn alloc(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let at = shell.number(call.words[0])?;
    let len = call.words.get(1).map_or(Ok(SECTOR), |word| shell.number(word))?;
    let disk = shell.disk();
    let len = len.min(disk.bytes().saturating_sub(at));
    let count = async move {
        let (mut here, mut found) = (at, 0);
        while here < at + len {
            let (is_allocated, run) = disk.is_allocated(here, at + len - here).await?;
            found += if is_allocated { run } else { 0 };
            here += run;
        }
        Ok(found)
    };
    let found = shell.session.run(count).map_err(|error| shell.fail_with(&error))?;
    shell.say(&format!("{found}/{len} bytes allocated at offset {}\n", size_of(at)));
    Ok(())
}

/// Some runs from `at` on: whether each is allocated, and how long it is.
async fn runs(disk: &Disk, at: u64) -> BlockResult<Vec<(bool, u64)>> {
    let (mut here, mut found) = (at, Vec::<(bool, u64)>::new());
    while here < disk.bytes() && found.len() < BATCH {
        let (is_allocated, len) = disk.is_allocated(here, disk.bytes() - here).await?;
        match found.last_mut() {
            Some((before, run)) if *before == is_allocated => *run += len,
            _ => found.push((is_allocated, len)),
        }
        here += len;
    }
    Ok(found)
}

/// `map`: all runs of the disk.
pub(super) fn map(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    let (mut at, mut run) = (0, None::<(bool, u64, u64)>);
    let print = |shell: &Shell, (is_allocated, from, len): (bool, u64, u64)| {
        let is = if is_allocated { "    allocated" } else { "not allocated" };
        let (size, offset) = (size_of(len), size_of(from));
        shell.say(&format!("{size} ({len:#x}) bytes {is} at offset {offset} ({from:#x})\n"));
    };
    while at < shell.disk().bytes() {
        let (disk, from) = (shell.disk(), at);
        let found = shell.session.run(async move { runs(&disk, from).await });
        for (is_allocated, len) in found.map_err(|error| shell.fail_with(&error))? {
            match &mut run {
                Some((before, _, sum)) if *before == is_allocated => *sum += len,
                run => {
                    let next = (is_allocated, at, len);
                    run.replace(next).into_iter().for_each(|run| print(shell, run));
                }
            }
            at += len;
        }
    }
    run.into_iter().for_each(|run| print(shell, run));
    Ok(())
}

/// `info`.
pub(super) fn info(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    let disk = shell.disk();
    let cluster = disk.node.cluster_bytes().unwrap_or(0);
    shell.say(&format!("format name: {}\n", disk.image.format()));
    shell.say(&format!("cluster size: {}\n", size_of(cluster)));
    let Some(qcow2) = disk.node.qcow2() else {
        shell.say("vm state offset: 0 bytes\n");
        return Ok(());
    };
    let header = qcow2.header();
    // Behind all that the disk's first-level entries can map.
    let mapped_by_one = header.cluster_bytes() as f64 * header.l2_entries() as f64;
    let vm_state = header.l1_entries_needed(header.disk_bytes) as f64 * mapped_by_one;
    shell.say(&format!("vm state offset: {}\n", size(vm_state)));
    let mut specific = b"Format specific information:\n".to_vec();
    qcow2_specific(&disk.image, &header, &mut specific)
        .map_err(|failure: Failure| shell.complain_named(&failure.to_string()))?;
    shell.say(&String::from_utf8_lossy(&specific));
    Ok(())
}

/// `length`.
pub(super) fn length(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    shell.say(&format!("{}\n", size_of(shell.disk().bytes())));
    Ok(())
}

/// `flush`.
pub(super) fn flush(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    let disk = shell.disk();
    let done = shell.session.run(async move { disk.flush().await });
    done.map_err(|error| shell.fail_with(&error))
}

/// `discard`.
pub(super) fn discard(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let mut showing = Showing::default();
    let operands = call.options(shell, "Cq", |letter, _| {
        match letter {
            'C' => showing.is_terse = true,
            _ => showing.is_quiet = true,
        }
        Ok(())
    })?;
    let [at, len_text] = operands[..] else { return Err(shell.usage(call)) };
    let at = shell.number(at)?;
    let len = shell.number(len_text)?;
    if len > REQUEST_MAX {
        let what = format!("length cannot exceed {REQUEST_MAX}, given {len_text}");
        return Err(shell.refuse(&what));
    }
    let disk = shell.disk();
    let work = disk.clone();
    let ns = shell.timed("discard", async move { work.discard(at, len).await })?;
    shell.request("discard", at, &[], showing)?.show("discard", len, &shell.printer, ns);
    Ok(())
}

/// `truncate`: gives the disk another size.
pub(super) fn truncate(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let mut how = Preallocation::Off;
    let operands = call.options(shell, "m:", |_, value| {
        let invalid = |_| shell.complain_named(&format!("Invalid preallocation mode '{value}'"));
        how = value.parse().map_err(invalid)?;
        Ok(())
    })?;
    let [text, ..] = operands[..] else { return Err(shell.usage(call)) };
    let bytes = shell.number(text)?;
    shell.drain()?;
    let disk = shell.disk();
    let before = disk.bytes();
    let is_raw = disk.image.format() == Format::Raw;
    if how != Preallocation::Off && bytes < before {
        return Err(shell.complain_named("Cannot use preallocation for shrinking files"));
    }
    if how != Preallocation::Off && !is_raw {
        let format = disk.image.format();
        let what = format!("preallocation is not supported in the format {format}");
        return Err(shell.complain_named(&what));
    }
    if !is_raw && !bytes.is_multiple_of(SECTOR) {
        return Err(shell.complain_named(&format!("The new size must be a multiple of {SECTOR}")));
    }
    if is_raw && disk.image.file().facts().is_block_device {
        return Err(shell.complain_named("a block device has the size it has"));
    }
    let resized = disk.clone();
    let added = before..bytes.max(before);
    shell
        .session
        .run(async move { resized.resize(bytes).await })
        .and_then(|()| preallocate(&shell.session, &disk.image, &disk.node, added, how))
        .map_err(|error| shell.fail_with(&error))
}
