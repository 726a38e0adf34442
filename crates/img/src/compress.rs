//! Compression by several threads: pieces of a disk go in, and their clusters come out as streams.
//!
//! ```text
//!   the I/O thread --pieces--> queue --> thread 0, 1, ... --streams--> the I/O thread, which alone touches the image
//! ```
//!
//! What comes out depends on the piece alone, and pieces are written in the order of the disk: so it does not matter how many threads there are.
//! The queue is bounded by the pieces that a copy has under way.

use block::qcow2::deflate;
use block::qcow2::header::Compression;
use block::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// What QEMU takes if it is told nothing, of zlib and of zstd.
const ZLIB_LEVEL: u32 = 6;
const ZSTD_LEVEL: u32 = 3;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub compression: Compression,
    pub cluster_bytes: usize,
    /// A cluster of zeroes is not data.
    pub finds_zeroes: bool,
}

/// A cluster, compressed or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    Stream(Vec<u8>),
    /// It would not become shorter.
    Plain,
    /// It is all zeroes.
    Zero,
}

/// What becomes of a piece: empty until it is done.
pub(crate) type Done = Arc<OnceLock<Vec<Packed>>>;

#[derive(Debug)]
struct Job {
    data: Vec<u8>,
    done: Done,
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Compressor {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Compressor {
    /// Starts `threads` threads.
    pub fn new(method: Method, threads: usize) -> Result<Compressor> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut compressor = Compressor { jobs: Some(jobs), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("compress-{n}"));
            #[expect(clippy::disallowed_methods, reason = "threads of a tool, which do no I/O")]
            let started = thread.spawn(move || work(method, &queue));
            let started = started.map_err(|error| Error::io("starting a thread", error));
            compressor.threads.push(started?);
        }
        Ok(compressor)
    }

    /// Compresses whole clusters.
    pub fn start(&self, data: Vec<u8>) -> Done {
        let done = Done::default();
        let job = Job { data, done: done.clone() };
        let jobs = self.jobs.as_ref().expect("there until it is dropped");
        jobs.send(job).expect("the threads end when nothing can be sent any more");
        done
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // What is left in the queue is of no use any more, but short.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(method: Method, queue: &Mutex<Receiver<Job>>) {
    loop {
        // Whoever holds the lock waits for the next job; the others wait for the lock.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { data, done }) = next else { return };
        let packed = data.chunks(method.cluster_bytes).map(|cluster| pack(method, cluster));
        let _ = done.set(packed.collect());
    }
}

/// Compresses a cluster.
pub(crate) fn pack(method: Method, cluster: &[u8]) -> Packed {
    if method.finds_zeroes && cluster.iter().all(|byte| *byte == 0) {
        return Packed::Zero;
    }
    stream_of(method.compression, cluster).map_or(Packed::Plain, Packed::Stream)
}

/// A cluster's data, compressed; `None` if it would not become shorter.
pub(crate) fn stream_of(compression: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    let level = match compression {
        Compression::Zlib => ZLIB_LEVEL,
        Compression::Zstd => ZSTD_LEVEL,
    };
    deflate(compression, level, cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(done: &Done) -> Vec<Packed> {
        while done.get().is_none() {
            std::thread::yield_now();
        }
        done.get().unwrap().clone()
    }

    #[test]
    fn every_number_of_threads_gives_the_same() {
        let mut noise = 1u64;
        let mut piece = |n: usize| -> Vec<u8> {
            let mut data = vec![0; 8 * 4096];
            for (at, byte) in data.iter_mut().enumerate().skip(4096) {
                noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1);
                *byte = if at < 8192 {
                    noise.to_be_bytes()[0]
                } else {
                    (at / 100 + n).to_le_bytes()[0]
                };
            }
            data
        };
        let pieces: Vec<_> = (0..20).map(&mut piece).collect();
        for compression in [Compression::Zlib, Compression::Zstd] {
            let method = Method { compression, cluster_bytes: 4096, finds_zeroes: true };
            let [one, four] = [1, 4].map(|threads| {
                let compressor = Compressor::new(method, threads).unwrap();
                let started: Vec<_> =
                    pieces.iter().map(|data| compressor.start(data.clone())).collect();
                started.iter().map(wait).collect::<Vec<_>>()
            });
            assert_eq!(one, four);
            assert_eq!(one[0][..2], [Packed::Zero, Packed::Plain]);
            assert!(one[0][2..].iter().all(|packed| matches!(packed, Packed::Stream(_))));
        }
    }

    #[test]
    fn zeroes_are_data_if_all_is_to_be_written() {
        let method =
            Method { compression: Compression::Zlib, cluster_bytes: 512, finds_zeroes: false };
        let compressor = Compressor::new(method, 1).unwrap();
        let packed = wait(&compressor.start(vec![0; 512]));
        assert!(matches!(packed[..], [Packed::Stream(_)]), "{packed:?}");
    }
}
