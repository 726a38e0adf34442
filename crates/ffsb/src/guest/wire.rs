//! What host and guest say to each other over the serial port.
//!
//! ```text
//!  ffsb LENGTH CRC JSON \n        LENGTH: bytes of JSON, CRC: its CRC-32C; each 8 hexadecimal digits
//! ```
//!
//! A serial port loses bytes when nobody takes them in time. A frame that is not whole is an error, never half a result.

use super::{Fs, Scheduler};
use crate::outcome::Outcome;
use crate::run::{Phase, RunErrorKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a frame at most.
pub(super) const FRAME_MAX: usize = 4 << 20;
/// Bytes of a profile's text at most: a terminal takes in so much while the guest is busy.
pub(super) const PROFILE_MAX: usize = 48 << 10;

const START: &[u8] = b"ffsb ";
/// Two numbers with a space behind each.
const NUMBERS: usize = 18;

/// What the guest finds in its initramfs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Config {
    /// Modules in the order in which they are loaded.
    pub modules: Vec<String>,
    /// The disk's name under `/dev`.
    pub disk: String,
    pub fs: Fs,
    pub barriers: bool,
    pub scheduler: Scheduler,
}

/// From the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Run {
        /// A profile's text.
        profile: String,
        warm_up_seconds: f64,
        keep: bool,
        latencies: bool,
        /// Measured instead of the profile's `time`.
        seconds: Option<f64>,
        cut: bool,
    },
    /// Unmount and power off.
    PowerOff,
}

/// From the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The file system is mounted.
    Ready {
        /// The kernel's version.
        kernel: String,
        /// Bytes of the disk.
        disk_bytes: u64,
    },
    /// How far a run is; also a sign of life.
    Progress { phase: Phase, fraction: Option<f64>, transactions: u64 },
    /// The run is over.
    Done(Box<Outcome>),
    /// The run failed; or, before `Ready`, the guest.
    Failed { kind: RunErrorKind, message: String },
    /// The file system is unmounted.
    Unmounted,
}

/// A message as a frame, its end included.
pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(message).expect("messages have string keys only");
    let crc = crc32c::crc32c(json.as_bytes());
    format!("ffsb {:08x} {crc:08x} {json}\n", json.len()).into_bytes()
}

/// The message of a line; else what is wrong with it.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let damaged = || {
        let start = String::from_utf8_lossy(&line[..line.len().min(60)]);
        format!("damaged on the serial line: {:?}", start.trim_end())
    };
    let rest = line.trim_ascii_end().strip_prefix(START).ok_or_else(damaged)?;
    let (numbers, json) = rest.split_at_checked(NUMBERS).ok_or_else(damaged)?;
    let numbers = std::str::from_utf8(numbers).map_err(|_| damaged())?;
    let mut numbers = numbers.split(' ').map(|digits| u32::from_str_radix(digits, 16));
    let (Some(Ok(len)), Some(Ok(crc))) = (numbers.next(), numbers.next()) else {
        return Err(damaged());
    };
    if json.len() as u64 != u64::from(len) || crc32c::crc32c(json) != crc {
        return Err(damaged());
    }
    serde_json::from_slice(json).map_err(|error| format!("not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_damaged_ones_do_not() {
        let order = Order::Run {
            profile: "time=1\n[filesystem]\n\tlocation = \"/ü\"\n".into(),
            warm_up_seconds: 0.5,
            keep: true,
            latencies: false,
            seconds: Some(0.25),
            cut: true,
        };
        let frame = encode(&order);
        assert_eq!(frame.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode::<Order>(&frame), Ok(order));
        for at in 0..frame.len() - 1 {
            let mut bad = frame.clone();
            bad[at] ^= 1;
            // A digit of another case or a space that became another sign may not matter; what is read must.
            let read = decode::<Order>(&bad);
            assert!(read.is_err(), "byte {at}: {read:?}");
            assert!(decode::<Order>(&frame[..at]).is_err(), "cut at {at}");
            let mut lost = frame.clone();
            lost.remove(at);
            assert!(decode::<Order>(&lost).is_err(), "byte {at} lost");
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let frame = encode(&"power_on");
        assert!(decode::<Order>(&frame).unwrap_err().contains("not understood"));
        assert!(decode::<Order>(b"[    1.0] Kernel panic\n").unwrap_err().contains("panic"));
    }
}
