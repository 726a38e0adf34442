//! Text for people: sizes as QEMU prints them, and names that stay on their line whatever is in them.

/// `text` with every character escaped that does not simply show itself.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Line and paragraph separators, and what turns the direction of writing round.
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_default());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// A number of bytes with three significant digits: `1.07 MiB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // As QEMU: the next unit from 1000 of one on, so that there are never four digits before the point.
    let unit = UNITS.iter().enumerate().rev().find(|(n, _)| {
        let above = 1000u128 << (10 * n.saturating_sub(1));
        *n == 0 || u128::from(bytes) >= above
    });
    let (n, unit) = unit.expect("the first one always fits");
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64 / (1u64 << (10 * n)) as f64;
    format!("{} {unit}B", three_digits(value))
}

/// As `%0.3g`, for values from 0.97 to 1000, and 0.
fn three_digits(value: f64) -> String {
    let rounded = |digits: usize| format!("{value:.digits$}");
    let text = match value {
        v if v >= 999.5 => return "1e+03".into(),
        v if v >= 99.95 => return rounded(0),
        v if v >= 9.995 => rounded(1),
        v if v >= 0.9995 => rounded(2),
        _ => rounded(3),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023, "0.999 KiB"),
            (1024, "1 KiB"),
            (1100, "1.07 KiB"),
            (1118208, "1.07 MiB"),
            (724992, "708 KiB"),
            (10485760, "10 MiB"),
            (1703936, "1.62 MiB"),
            (1023999, "1e+03 KiB"),
            (1024000, "0.977 MiB"),
            (102400000, "97.7 MiB"),
            (u64::MAX / 2, "8 EiB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(escape("a\nb\u{1b}[m é\u{202e}"), r"a\nb\u{1b}[m é\u{202e}");
    }

    #[test]
    fn nothing_leaves_its_line_and_letters_stay() {
        assert_eq!(escape("a b'c\"d\\e é 漢字 🦀"), "a b'c\"d\\e é 漢字 🦀");
        assert_eq!(escape("a\nb\r\t\u{1b}[31m\0\u{7f}"), r"a\nb\r\t\u{1b}[31m\u{0}\u{7f}");
        assert_eq!(escape("\u{85}\u{2028}\u{202e}x"), r"\u{85}\u{2028}\u{202e}x");
    }
}
