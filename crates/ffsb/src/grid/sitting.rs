//! One subject with one workload: a new image, its server, a file set, and a measurement for each number of threads.

use super::plan::{Plan, Subject};
use super::trace::Stages;
use super::{Device, Workload};
use crate::disk::Lane;
use crate::disk::file::FileLane;
use crate::disk::vhost_user::{VhostUserDisk, VhostUserOptions};
use crate::profile::Profile;
use crate::report::Run;
use crate::run::{
    Cleanup, Control, Phase, Place, Progress, RunError, RunErrorKind, Session, lanes_needed,
};
use crate::server::{Server, ServerError, ServerKind, ServerSpec, create_image, host_cpu_seconds};
use block::Format;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Entries of a queue that every server takes, and at most.
const QUEUE_SIZES: (u16, u16) = (128, 1024);
/// Descriptors of a request.
const REQUEST_DESCS: usize = 3;

/// What sittings have in common.
#[derive(Debug)]
pub(super) struct Room<'a> {
    pub plan: &'a Plan,
    /// Where images are.
    pub images: &'a Path,
    /// Where sockets are: their paths must be short.
    pub sockets: &'a Path,
    /// The binary of ferroblk.
    pub program: &'a Path,
    pub stop: &'a AtomicBool,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sitting<'a> {
    pub workload: &'a Workload,
    pub subject: &'a Subject,
    /// Numbers of threads, and what a session is given for each.
    pub threads: &'a [(u32, Option<u32>)],
    /// Stages of requests are measured.
    pub traced: bool,
}

/// What one measurement gave.
#[derive(Debug)]
pub(super) struct Measured {
    pub run: Run,
    pub stages: Option<Stages>,
}

/// Why a sitting ended before all was measured.
#[derive(Debug)]
pub(super) enum Broke {
    Interrupted,
    /// Nothing of the rest can be measured.
    All(String),
    /// The next measurement failed; another sitting may do the rest.
    One(String),
}

/// What whoever wants the measurements says and hears.
pub(super) trait Audience {
    /// A measurement begins: how many seconds it is to take. An error: it is not to be, and none after it.
    fn begin(&self, threads: u32) -> Result<Option<f64>, String>;
    /// It is done.
    fn done(&mut self, threads: u32, measured: Measured);
}

impl Room<'_> {
    /// Holds a sitting. Nothing of it is left then.
    pub fn hold(&self, sitting: &Sitting<'_>, audience: &mut dyn Audience) -> Result<(), Broke> {
        let options = &self.plan.options;
        let mut profile = sitting.workload.to_profile();
        profile.verify |= options.verify;
        profile.seed = options.seed.or(profile.seed);
        match sitting.subject.device {
            Device::Directory => self.in_directory(sitting, profile, audience),
            Device::Bare => self.on_file(sitting, &profile, audience),
            Device::VhostUser => self.on_server(sitting, &profile, audience),
        }
    }

    fn in_directory(
        &self,
        sitting: &Sitting<'_>,
        mut profile: Profile,
        audience: &mut dyn Audience,
    ) -> Result<(), Broke> {
        let failed = |error: std::io::Error| Broke::All(format!("making a directory: {error}"));
        profile.directio = sitting.subject.cache.is_direct();
        let place = tempfile::Builder::new().prefix("files-").tempdir_in(self.images);
        let place = place.map_err(failed)?;
        for (index, spec) in profile.filesystems.iter_mut().enumerate() {
            let location = place.path().join(index.to_string());
            std::fs::create_dir(&location).map_err(failed)?;
            spec.location = location.to_string_lossy().into_owned();
        }
        self.measure(sitting, &profile, Place::Directories, None, audience)
    }

    fn on_file(
        &self,
        sitting: &Sitting<'_>,
        profile: &Profile,
        audience: &mut dyn Audience,
    ) -> Result<(), Broke> {
        let image = self.image(Format::Raw)?;
        let lanes = lanes_of(sitting, profile);
        let lanes = FileLane::open(&image.0, sitting.subject.cache, lanes)
            .map_err(|error| Broke::All(format!("opening the disk: {error}")))?;
        let mut lanes = boxed(lanes);
        let place = Place::Disk { name: "the disk", lanes: &mut lanes };
        self.measure(sitting, profile, place, None, audience)
    }

    fn on_server(
        &self,
        sitting: &Sitting<'_>,
        profile: &Profile,
        audience: &mut dyn Audience,
    ) -> Result<(), Broke> {
        let Some((kind, format, aio)) = sitting.subject.served else {
            return Err(Broke::All("nobody serves it".to_owned()));
        };
        let options = &self.plan.options;
        let image = self.image(format)?;
        let lanes = lanes_of(sitting, profile);
        let queue_size = queue_size(lanes, options.queues);
        let trace = sitting.traced.then(|| Scrap(image.0.with_extension("trace")));
        let mut spec =
            ServerSpec { queues: options.queues, ..ServerSpec::new(kind, &image.0, format) };
        (spec.cache, spec.aio) = (sitting.subject.cache, aio);
        if kind == ServerKind::Ferroblk {
            spec.program = Some(self.program.to_owned());
            let more = |key: &str, value: &str| [key.to_owned(), value.to_owned()];
            spec.extra_args.extend(more("--iothreads", &options.iothreads.to_string()));
            spec.extra_args.extend(more("--queue-size", &queue_size.max(256).to_string()));
            if let Some(Scrap(path)) = &trace {
                spec.extra_args.extend(more("--trace", &path.to_string_lossy()));
            }
        }
        let server = Server::start(&spec, self.sockets);
        let server = server.map_err(|error| Broke::All(error.to_string()))?;
        let wanted = VhostUserOptions {
            queues: options.queues,
            queue_size,
            lanes,
            patience: Duration::from_secs(30),
            min_bytes: self.plan.disk_bytes,
            ..VhostUserOptions::default()
        };
        let disk = VhostUserDisk::connect(server.socket(), &wanted);
        let disk = disk.map_err(|error| Broke::All(error.to_string()))?;
        let lanes: Result<Vec<_>, _> = (0..lanes).map(|index| disk.lane(index)).collect();
        let mut lanes = boxed(lanes.map_err(|error| Broke::All(error.to_string()))?);
        let place = Place::Disk { name: "the disk", lanes: &mut lanes };
        let tracer = trace.as_ref().map(|Scrap(path)| path.as_path());
        let watch = Watch { server: &server, trace: tracer };
        let result = self.measure(sitting, profile, place, Some(&watch), audience);
        drop((lanes, disk));
        // The image goes with the sitting, so there is nothing for the server to put in order; and some take long (qemu-storage-daemon
        // with QED may not end at all).
        server.kill();
        result
    }

    /// A new disk.
    fn image(&self, format: Format) -> Result<Scrap, Broke> {
        let image = Scrap(self.images.join(format!("disk.{format}")));
        let made = create_image(self.program, &image.0, format, self.plan.disk_bytes, &[]);
        made.map_err(|error| Broke::All(error.to_string()))?;
        Ok(image)
    }

    fn measure(
        &self,
        sitting: &Sitting<'_>,
        profile: &Profile,
        place: Place<'_>,
        watch: Option<&Watch<'_>>,
        audience: &mut dyn Audience,
    ) -> Result<(), Broke> {
        let meter = Meter { watch, begin: Cell::default(), end: Cell::default() };
        let progress = |progress: Progress| meter.see(progress.phase);
        let mut control = Control {
            stop: self.stop,
            progress: Some(&progress),
            warm_up_seconds: self.plan.options.warm_up_seconds,
            cleanup: Cleanup::Remove,
            latencies: true,
            seconds: None,
            cut: true,
        };
        let all = |error: RunError| broke(error, Broke::All);
        let mut session = Session::open(profile, place, &control).map_err(all)?;
        if let Err(error) = session.set_up(&control) {
            return session.close(Err(error), &control).map_err(all);
        }
        for (threads, given) in sitting.threads {
            control.seconds = match audience.begin(*threads) {
                Ok(seconds) => seconds,
                Err(why) => {
                    session.close(Ok(()), &control).map_err(all)?;
                    return Err(Broke::All(why));
                }
            };
            let before = watch.map(Watch::stages).transpose().map_err(Broke::One)?.flatten();
            let outcome = match session.measure(*given, &control) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let closed: Result<(), _> = session.close(Err(error), &control);
                    return closed.map_err(|error| broke(error, Broke::One));
                }
            };
            let after = watch.map(Watch::stages).transpose().map_err(Broke::One)?.flatten();
            let stages = after.zip(before).map(|(after, before)| after.since(&before));
            let (server, host) = meter.seconds().map_err(Broke::One)?;
            let run = Run::of(&outcome, server, host);
            audience.done(*threads, Measured { run, stages });
        }
        session.close(Ok(()), &control).map_err(all)
    }
}

fn broke(error: RunError, how: fn(String) -> Broke) -> Broke {
    match error.kind() {
        RunErrorKind::Interrupted => Broke::Interrupted,
        _ => how(error.to_string()),
    }
}

/// Threads of the largest measurement, each of which has a lane.
fn lanes_of(sitting: &Sitting<'_>, profile: &Profile) -> usize {
    let most = sitting.threads.iter().filter_map(|(_, given)| *given).max();
    lanes_needed(profile).max(most.map_or(0, |most| most as usize))
}

fn boxed<L: Lane + 'static>(lanes: Vec<L>) -> Vec<Box<dyn Lane>> {
    lanes.into_iter().map(|lane| Box::new(lane) as Box<dyn Lane>).collect()
}

/// Entries of a queue for all lanes that share it.
fn queue_size(lanes: usize, queues: u16) -> u16 {
    let needed = lanes.div_ceil(usize::from(queues.max(1))) * REQUEST_DESCS;
    let needed = u16::try_from(needed.next_power_of_two()).unwrap_or(QUEUE_SIZES.1);
    needed.clamp(QUEUE_SIZES.0, QUEUE_SIZES.1)
}

/// A file that goes when this does.
#[derive(Debug)]
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server that is looked at.
#[derive(Debug)]
struct Watch<'a> {
    server: &'a Server,
    trace: Option<&'a Path>,
}

impl Watch<'_> {
    /// Its trace so far; `None`: it writes none.
    fn stages(&self) -> Result<Option<Stages>, String> {
        let Some(path) = self.trace else { return Ok(None) };
        self.server.say_statistics().map_err(|error| error.to_string())?;
        Stages::read(path).map(Some)
    }
}

/// CPU time of server and host over a measurement.
#[derive(Debug)]
struct Meter<'a> {
    watch: Option<&'a Watch<'a>>,
    begin: Cell<Option<(f64, f64)>>,
    end: Cell<Option<(f64, f64)>>,
}

impl Meter<'_> {
    fn see(&self, phase: Phase) {
        match phase {
            Phase::Sync => {
                self.begin.set(None);
                self.end.set(None);
            }
            // Told again and again while it lasts.
            Phase::Measure if self.begin.get().is_none() => self.begin.set(self.read().ok()),
            Phase::Measured => self.end.set(self.read().ok()),
            _ => {}
        }
    }

    fn read(&self) -> Result<(f64, f64), ServerError> {
        let server = self.watch.map_or(Ok(0.0), |watch| watch.server.cpu_seconds())?;
        Ok((server, host_cpu_seconds().unwrap_or(0.0)))
    }

    /// Seconds of the server and of the host.
    fn seconds(&self) -> Result<(f64, f64), String> {
        match (self.begin.get(), self.end.get()) {
            (Some(begin), Some(end)) => {
                Ok(((end.0 - begin.0).max(0.0), (end.1 - begin.1).max(0.0)))
            }
            _ => Err("the CPU time of the server cannot be read".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::queue_size;

    #[test]
    fn a_queue_has_room_for_all_its_lanes() {
        for (lanes, queues, size) in
            [(1, 1, 128), (42, 1, 128), (43, 1, 256), (64, 2, 128), (1024, 1, 1024)]
        {
            assert_eq!(queue_size(lanes, queues), size, "{lanes} {queues}");
        }
    }
}
