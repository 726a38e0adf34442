//! What is measured on every subject: a scenario, or a profile that somebody wrote.

use super::GridError;
use crate::profile::scenario::{Scale, Scenario};
use crate::profile::{FileSystem, Op, Profile};

/// Bytes allowed for files that a profile makes without a bound.
const UNBOUNDED: u64 = 4 << 30;

/// A workload with its name in the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    name: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Scenario(Scenario, Scale),
    Profile(Box<Profile>),
}

impl Workload {
    /// A built-in one.
    pub fn scenario(scenario: Scenario, scale: Scale) -> Workload {
        Workload { name: scenario.name().to_owned(), kind: Kind::Scenario(scenario, scale) }
    }

    /// A profile. Its locations mean nothing here: the files are on what is measured.
    ///
    /// # Errors
    ///
    /// One that measures nothing.
    pub fn profile(name: &str, profile: Profile) -> Result<Workload, GridError> {
        if profile.time == Some(0) {
            let why = format!("{name}: time is 0, so there is nothing to measure");
            return Err(GridError::Refused(why));
        }
        Ok(Workload { name: name.to_owned(), kind: Kind::Profile(Box::new(profile)) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the data set is, for the report.
    pub(crate) fn note(&self) -> String {
        match &self.kind {
            Kind::Scenario(scenario, scale) => scenario.scale_note(*scale),
            Kind::Profile(profile) => {
                let (groups, systems) = (profile.thread_groups.len(), profile.filesystems.len());
                format!("a profile with {groups} thread groups and {systems} file systems")
            }
        }
    }

    /// The profile to run. Threads and seconds are chosen by whoever runs it.
    pub(crate) fn to_profile(&self) -> Profile {
        match &self.kind {
            Kind::Scenario(scenario, scale) => scenario.profile(1, "/", 1, *scale),
            Kind::Profile(profile) => (**profile).clone(),
        }
    }

    /// Seconds that it wants to be measured, `otherwise` if it does not care; `None`: until its iterations are done.
    pub(super) fn own_seconds(&self, otherwise: f64) -> Option<f64> {
        match &self.kind {
            Kind::Scenario(..) => Some(otherwise),
            Kind::Profile(profile) => profile.time.map(f64::from),
        }
    }

    /// Numbers of threads to measure with, each with what [`crate::run::Session::measure`] is to be given. `wanted`: what the user
    /// said, if anything.
    pub(crate) fn threads(
        &self,
        wanted: Option<&[u32]>,
        default: &[u32],
    ) -> Result<Vec<(u32, Option<u32>)>, GridError> {
        let several = |list: &[u32]| list.iter().map(|n| (*n, Some(*n))).collect();
        match (&self.kind, wanted) {
            (Kind::Scenario(..), wanted) => Ok(several(wanted.unwrap_or(default))),
            (Kind::Profile(profile), None) => {
                let own = profile.thread_groups.iter().map(|group| group.num_threads).sum();
                Ok(vec![(own, None)])
            }
            (Kind::Profile(profile), Some(wanted)) if profile.thread_groups.len() == 1 => {
                Ok(several(wanted))
            }
            (Kind::Profile(profile), Some(_)) => Err(GridError::Refused(format!(
                "{}: threads= cannot be shared out to its {} thread groups",
                self.name,
                profile.thread_groups.len()
            ))),
        }
    }

    /// Whether it begins without files, so that what it makes itself is all there is.
    pub(super) fn begins_empty(&self) -> bool {
        let empty = |fs: &FileSystem| {
            fs.num_files == 0
                && fs.init_size.is_none()
                && fs.init_util.is_none()
                && fs.ageing.is_none()
        };
        self.to_profile().filesystems.iter().all(empty)
    }

    /// It is a built-in one.
    pub(crate) fn is_scenario(&self) -> bool {
        matches!(self.kind, Kind::Scenario(..))
    }

    /// Bytes that its files take at most with so many threads; an estimate where nothing bounds them.
    pub(crate) fn room(&self, threads: u32) -> u64 {
        let profile = match &self.kind {
            Kind::Scenario(scenario, scale) => return scenario.room(threads, *scale),
            Kind::Profile(profile) => profile,
        };
        let grows = profile.thread_groups.iter().flat_map(|group| &group.weights).any(|(op, _)| {
            matches!(op, Op::Create | Op::CreateFsync | Op::Append | Op::AppendFsync)
        });
        profile
            .filesystems
            .iter()
            .fold(0, |sum: u64, fs| sum.saturating_add(room(fs, threads, grows)))
    }
}

fn room(fs: &FileSystem, threads: u32, grows: bool) -> u64 {
    let largest = fs.size_weights.iter().map(|(size, _)| *size).max().unwrap_or(fs.max_filesize);
    let files = u64::from(fs.max_files.unwrap_or(fs.num_files)) + u64::from(threads);
    let files = files.saturating_mul(largest).max(fs.init_size.unwrap_or(0));
    // Utilisation is of the disk, however large it is.
    let open_ended =
        fs.init_util.is_some() || fs.ageing.is_some() || (grows && fs.max_files.is_none());
    files.saturating_add(if open_ended { UNBOUNDED } else { 0 })
}
