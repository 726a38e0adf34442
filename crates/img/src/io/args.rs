//! What a command's words mean: options as getopt finds them, sizes, bytes.
//!
//! Words are separated by spaces, and by nothing else: there are no quotes. Options may stand after operands, and may share one word (`-qv`); a word
//! `--` ends them.

/// Why a word is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotANumber {
    /// It cannot be read, or it has a suffix that nobody knows.
    Invalid,
    /// It is negative, or more than 2^63 - 1.
    TooLarge,
}

/// The words of a line.
pub(super) fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

/// A size in bytes: decimal, with a fraction if a suffix b, k, M, G, T, P or E makes whole bytes of it; or hexadecimal, which has no suffix.
pub(super) fn number(text: &str) -> Result<u64, NotANumber> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if let Some(negative) = digits.strip_prefix('-') {
        let is_number = negative.starts_with(|c: char| c.is_ascii_digit());
        return Err(if is_number { NotANumber::TooLarge } else { NotANumber::Invalid });
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(NotANumber::Invalid);
    }
    let bytes = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => match hex.bytes().all(|c| c.is_ascii_hexdigit()) && !hex.is_empty() {
            true => u64::from_str_radix(hex, 16).map_err(|_| NotANumber::TooLarge)?,
            false => return Err(NotANumber::Invalid),
        },
        None => decimal(digits)?,
    };
    match bytes <= i64::MAX.unsigned_abs() {
        true => Ok(bytes),
        false => Err(NotANumber::TooLarge),
    }
}

fn decimal(text: &str) -> Result<u64, NotANumber> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        suffix => crate::suffix_shift(suffix).ok_or(NotANumber::Invalid)?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = fraction.bytes().all(|c| c.is_ascii_digit());
    if !is_number || (whole.is_empty() && fraction.is_empty()) {
        return Err(NotANumber::Invalid);
    }
    let has_part = fraction.bytes().any(|c| c != b'0');
    if has_part && shift == 0 {
        return Err(NotANumber::Invalid);
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let whole: u64 = whole.parse().map_err(|_| NotANumber::TooLarge)?;
    // More digits than these change nothing at a scale of 2^60.
    let fraction = &fraction[..fraction.len().min(18)];
    let mut part = 0u128;
    if has_part && !fraction.is_empty() {
        let unit = 10u128.pow(u32::try_from(fraction.len()).expect("at most 18"));
        let value: u128 = fraction.parse().map_err(|_| NotANumber::Invalid)?;
        part = ((value << shift) + unit / 2) / unit;
    }
    let bytes = (u128::from(whole) << shift) + part;
    u64::try_from(bytes).map_err(|_| NotANumber::TooLarge)
}

/// A whole number as C reads one: decimal, octal after `0`, hexadecimal after `0x`. `None` if it is none; what is too large becomes the largest.
pub(super) fn integer(text: &str) -> Option<i64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match hex {
        Some(hex) => (hex, 16),
        None if digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // `from_str_radix` takes signs and underscores of its own.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i64::from_str_radix(digits, radix).unwrap_or(i64::MAX);
    Some(if is_negative { -value } else { value })
}

/// A byte, written as [`integer`] takes it.
pub(super) fn pattern(text: &str) -> Option<u8> {
    integer(text).and_then(|value| u8::try_from(value).ok())
}

/// An option that is not there, or goes without the value that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadOption {
    Unknown(char),
    NeedsValue(char),
}

/// What getopt makes of words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    /// Options in their order, up to one that is bad.
    pub options: Vec<(char, &'a str)>,
    /// The first that is bad.
    pub bad: Option<BadOption>,
    /// All other words.
    pub operands: Vec<&'a str>,
}

/// Sorts out `words`; `spec` has the letters of the options, those with a value followed by a colon.
pub(super) fn options<'a>(words: &[&'a str], spec: &str) -> Parsed<'a> {
    let mut parsed = Parsed { options: Vec::new(), bad: None, operands: Vec::new() };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            parsed.operands.push(word);
            continue;
        };
        if letters == "-" {
            break;
        }
        for (at, letter) in letters.char_indices() {
            let known = spec.find(letter).filter(|_| letter != ':');
            let Some(known) = known else {
                parsed.bad = Some(BadOption::Unknown(letter));
                return parsed;
            };
            let after = known + letter.len_utf8();
            if !spec[after..].starts_with(':') {
                parsed.options.push((letter, ""));
                continue;
            }
            let rest = &letters[at + letter.len_utf8()..];
            let value = if rest.is_empty() { words.next() } else { Some(rest) };
            match value {
                Some(value) => parsed.options.push((letter, value)),
                None => {
                    parsed.bad = Some(BadOption::NeedsValue(letter));
                    return parsed;
                }
            }
            break;
        }
    }
    parsed.operands.extend(words);
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_is_between_spaces() {
        assert_eq!(words("  read  0 512 "), ["read", "0", "512"]);
        assert_eq!(words("read\t0 'a b'"), ["read\t0", "'a", "b'"]);
        assert!(words("   ").is_empty() && words("").is_empty());
    }

    #[test]
    fn sizes_as_qemu_takes_them() {
        for (text, bytes) in [
            ("0", 0),
            ("+512", 512),
            ("010", 10),
            ("1b", 1),
            ("1.5k", 1536),
            (".5k", 512),
            ("1.k", 1024),
            ("1.0", 1),
            ("0.1K", 102),
            ("0.0000001k", 0),
            ("1e", 1 << 60),
            ("0x1b", 27),
            ("0X10", 16),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(number(text), Ok(bytes), "{text}");
        }
        for text in [
            "", "x", "-", "--", "-x", ".", ".k", "1e3", "1kb", "0x", "0x1k", "0.3", "inf", "nan",
            "1.5.5k", "+-5", "１", "0x+5", "1 k",
        ] {
            let expected = if text == "+-5" { NotANumber::TooLarge } else { NotANumber::Invalid };
            assert_eq!(number(text), Err(expected), "{text}");
        }
        for text in ["-1", "-0", "8E", "16E", "99999999999999999999", "0xffffffffffffffffff"] {
            assert_eq!(number(text), Err(NotANumber::TooLarge), "{text}");
        }
    }

    #[test]
    fn patterns_are_bytes_as_c_writes_them() {
        for (text, byte) in [("0", 0), ("255", 255), ("0xFF", 255), ("010", 8), ("+5", 5)] {
            assert_eq!(pattern(text), Some(byte), "{text}");
        }
        for text in ["256", "-1", "08", "0x", "1k", "", "1_0", "99999999999999999999", "++1"] {
            assert_eq!(pattern(text), None, "{text}");
        }
        assert_eq!(integer("99999999999999999999"), Some(i64::MAX));
        assert_eq!(integer("-7"), Some(-7));
    }

    #[test]
    fn options_are_found_as_getopt_finds_them() {
        let parsed = options(&["0", "-qv", "4k", "-P", "5", "-s7", "--", "-x"], "qvP:s:");
        assert_eq!(parsed.options, [('q', ""), ('v', ""), ('P', "5"), ('s', "7")]);
        assert_eq!(parsed.operands, ["0", "4k", "-x"]);
        assert_eq!(parsed.bad, None);
        assert_eq!(options(&["-PP", "0"], "P:").options, [('P', "P")]);
        assert_eq!(options(&["-"], "P:").operands, ["-"]);
        assert_eq!(options(&["-P"], "P:").bad, Some(BadOption::NeedsValue('P')));
        assert_eq!(options(&["-qx"], "q").bad, Some(BadOption::Unknown('x')));
        assert_eq!(options(&["--quiet"], "q:").bad, Some(BadOption::Unknown('-')));
        assert_eq!(options(&["-:"], "q:").bad, Some(BadOption::Unknown(':')));
        assert_eq!(options(&["-é"], "q:").bad, Some(BadOption::Unknown('é')));
    }
}
