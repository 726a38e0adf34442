//! After a verified run: every file is read back, past the host's cache as far as that goes, and checked. So a write that was lost
//! is found even by a profile that never reads. Not measured.

use super::draw::{self, Purpose};
use super::error::RunError;
use super::io::{Broke, Io, Way, Work};
use super::shared::{Course, Shared};
use super::tally::Tally;
use super::target::Target;
use super::{Control, Job, Phase, spawn};
use crate::disk::Lane;
use crate::files::set::FileSet;
use crate::files::{Access, How};
use crate::profile::Stats;

pub(crate) fn read_back(
    job: &Job<'_>,
    control: &Control<'_>,
    targets: &[Target<'_>],
    lanes: &mut [Box<dyn Lane>],
) -> Result<(), RunError> {
    let shared = Shared::new(control.stop, Course::Measure);
    std::thread::scope(|scope| {
        let mut lanes = lanes.iter_mut();
        for target in targets {
            let tally = Tally::new(false, &Stats::default());
            let content = draw::generator(job.seed, Purpose::Content, target.index, 0);
            let access = Access::new(lanes.next());
            let mut io = Io::new(&shared, access, tally, job.longest_block, content);
            (io.doing, io.verify, io.seeks) = ("verify", true, job.seeks);
            let block = job.longest_block;
            spawn(scope, &shared, "ffsb-verify", move || {
                let sets = [&target.data, &target.fill];
                let checked = sets.iter().try_for_each(|set| check(&mut io, target, set, block));
                if let Err(Broke::Failed(error)) = checked {
                    io.shared.fail(error);
                }
            });
        }
        shared.wait(None, || control.tell(Phase::Verify, None, 0));
    });
    shared.result()
}

fn check(io: &mut Io<'_>, target: &Target<'_>, set: &FileSet, block: u32) -> Result<(), Broke> {
    for number in 0..set.slots() {
        let Some(file) = set.shared(number) else { continue };
        let work = Work { target, set, number, file: &file };
        let open = io.open(work, How::Read, target.direct)?;
        let forgotten = target.files.forget_cached(&open);
        forgotten.map_err(|error| io.failed("dropping the cache of", work, &error))?;
        io.row(Way::Read, work, &open, 0, file.len(), block)?;
        io.close(open);
    }
    Ok(())
}
