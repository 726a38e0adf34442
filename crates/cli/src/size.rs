//! Sizes as people write them.

/// Bytes of `text`: a number, with a suffix k, M, G, T, P or E (powers of 1024, either case) or without; at most 2^63 - 1.
pub fn parse(text: &str) -> Result<u64, String> {
    let invalid = || "expected a number of bytes, or one with the suffix k, M, G or T".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" => 0,
        suffix => img::suffix_shift(suffix).ok_or_else(invalid)?,
    };
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes <= i64::MAX as u64);
    bytes.ok_or_else(|| "larger than any file can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_take_binary_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10k", 10 << 10),
            ("3M", 3 << 20),
            ("10G", 10 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse("9223372036854775807"), Ok(i64::MAX as u64));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1e3",
            "1.5G",
            "8EiB",
            "0x10",
            "10 G",
            "10GB",
            "8E",
            "99999999999999999999",
            "１",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
