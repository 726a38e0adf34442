//! Sizes as `qemu-img` takes them.

use block::{Error, ErrorKind, Result};

/// Bytes of `text`: a number, decimal (with a fraction, if a suffix follows) or hexadecimal, and a suffix b, k, M, G, T, P or E in either case.
///
/// # Errors
///
/// `BadRequest` with the reason; at most 2^63 - 1 is accepted.
pub fn parse(text: &str) -> Result<u64> {
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::BadRequest, format!("the size '{text}' is not {why}")))
    };
    let invalid = "a number with a suffix k, M, G, T, P or E, or none";
    let too_large = "from 0 to 9223372036854775807";
    let bytes = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            match u64::from_str_radix(hex, 16) {
                Ok(bytes) => Some(bytes),
                Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => None,
                Err(_) => return refuse(invalid),
            }
        }
        Some(_) => return refuse(invalid),
        None => match decimal(text) {
            Ok(bytes) => bytes,
            Err(NotASize) => return refuse(invalid),
        },
    };
    match bytes {
        Some(bytes) if bytes <= i64::MAX.unsigned_abs() => Ok(bytes),
        _ => refuse(too_large),
    }
}

/// The binary logarithm of what the suffix k, M, G, T, P or E, in either case, stands for.
pub fn suffix_shift(suffix: &str) -> Option<u32> {
    match suffix {
        "k" | "K" => Some(10),
        "m" | "M" => Some(20),
        "g" | "G" => Some(30),
        "t" | "T" => Some(40),
        "p" | "P" => Some(50),
        "e" | "E" => Some(60),
        _ => None,
    }
}

struct NotASize;

/// `None`: too large.
fn decimal(text: &str) -> std::result::Result<Option<u64>, NotASize> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        suffix => suffix_shift(suffix).ok_or(NotASize)?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(fraction) || (shift == 0 && number.contains('.')) {
        return Err(NotASize);
    }
    let Ok(whole) = whole.parse::<u64>() else { return Ok(None) };
    // More digits than these change nothing at a scale of 2^60.
    let fraction = &fraction[..fraction.len().min(18)];
    let mut part = 0u128;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).expect("at most 18");
        let value: u128 = fraction.parse().map_err(|_| NotASize)?;
        let unit = 10u128.pow(digits);
        part = ((value << shift) + unit / 2) / unit;
    }
    let bytes = (u128::from(whole) << shift) + part;
    Ok(u64::try_from(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn numbers_suffixes_fractions_and_hexadecimal() {
        for (text, bytes) in [
            ("0", 0),
            ("1001", 1001),
            ("1b", 1),
            ("1K", 1024),
            ("5m", 5 << 20),
            ("1.5G", 3 << 29),
            ("0.1k", 102),
            ("2.k", 2048),
            ("0x10", 16),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1e3",
            "1.5",
            "1.5.5k",
            ".5k",
            "5X",
            "5 k",
            "5kB",
            "0x",
            "0x10k",
            "0xg",
            "0x+5",
            "8E",
            "18446744073709551616",
            "0xffffffffffffffffff",
            "１",
            "k5",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
