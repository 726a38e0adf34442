//! Values in a profile's text. Each function takes what stands behind the key, and says in words why it is not what it should be.

use std::fmt::Write;

/// Longest text value: no path of a file system that Linux mounts is longer.
const MAX_TEXT: usize = 4096;
/// Characters of a bad value that an error shows.
const SHOWN: usize = 40;

/// A piece of the profile for a message: on one line, and not the whole of it if it is long.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push_str("...");
    }
    format!("`{out}`")
}

/// A whole number within `min..=max`.
pub(super) fn whole(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|number| digits && (min..=max).contains(number))
        .ok_or_else(|| format!("{} is not a whole number from {min} to {max}", shown(text)))
}

/// A whole number within `min..=u32::MAX`.
pub(super) fn count(text: &str, min: u32) -> Result<u32, String> {
    let number = whole(text, min.into(), u32::MAX.into())?;
    Ok(u32::try_from(number).expect("within the limits given"))
}

/// 0 or 1.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{} is neither 0 nor 1", shown(text))),
    }
}

/// Bytes: a whole number, and `k`, `m`, `g` or `t` in either case, with `b` behind it or not. Units count in 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{} is not a size such as 4096, 4k, 4KB, 16m or 1g", shown(text));
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return Err(bad()),
    };
    if digits.is_empty() {
        return Err(bad());
    }
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    // File offsets are signed.
    bytes
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("{} is more than a file can have", shown(text)))
}

/// The shortest form of a size that [`size`] reads as the same.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [(40, "t"), (30, "g"), (20, "m"), (10, "k")];
    let unit = units.into_iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// A part of the whole, 0.0 to 1.0.
pub(super) fn part(text: &str) -> Result<f64, String> {
    decimal(text, 1.0).map_err(|()| format!("{} is not a number from 0.0 to 1.0", shown(text)))
}

/// A decimal number of milliseconds that fits in 32 bits of microseconds.
pub(super) fn milliseconds(text: &str) -> Result<f64, String> {
    let max = f64::from(u32::MAX / 1000);
    decimal(text, max).map_err(|()| format!("{} is not a number from 0 to {max}", shown(text)))
}

fn decimal(text: &str, max: f64) -> Result<f64, ()> {
    let plain =
        text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'-' | b'+'));
    let number = text.parse::<f64>().ok().filter(|number| plain && (0.0..=max).contains(number));
    // "-0" is 0.
    number.map(f64::abs).ok_or(())
}

/// Text: to the end of the line, or in quotation marks (ours) with `\"`, `\\`, `\n`.
pub(super) fn text(value: &str) -> Result<String, String> {
    let text = match value.strip_prefix('"') {
        Some(rest) => unquote(rest.strip_suffix('"').unwrap_or(rest))?,
        None => value.to_owned(),
    };
    if text_is_fit(&text) {
        Ok(text)
    } else {
        Err(format!("a text of 1 to {MAX_TEXT} bytes without a NUL is needed"))
    }
}

/// Whether a profile can have this text as a value.
pub(super) fn text_is_fit(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !text.contains('\0')
}

fn unquote(inner: &str) -> Result<String, String> {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some(c @ ('"' | '\\')) => out.push(c),
                _ => {
                    return Err(
                        r#"in quotation marks, only \", \\, \n and \r may follow a `\`"#.into()
                    );
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

/// A text as [`text`] reads it back: bare where that is possible, as FFSB wants it.
pub(super) fn text_form(text: &str) -> String {
    let special = |c: char| c == '#' || c == '\n' || c == '\r';
    if !text.contains(special) && !text.starts_with('"') && text.trim() == text {
        return text.to_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '"' | '\\' => write!(out, "\\{c}").expect("a String takes everything"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
