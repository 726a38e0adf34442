//! Figures as text, and names that stay on their line whatever is in them.
//!
//! Between a figure and its unit is a space that no line is broken at.

/// The space before a unit.
pub const SPACE: char = '\u{a0}';

/// `value` with three digits that count, thousands set apart: `12,345`, `56.3`, `0.0123`.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let magnitude = value.abs();
    let digits = match magnitude {
        m if m >= 99.95 || m == 0.0 => 0,
        m if m >= 9.995 => 1,
        m if m >= 0.9995 => 2,
        m if m >= 0.09995 => 3,
        m if m >= 0.009_995 => 4,
        _ => 5,
    };
    let text = format!("{magnitude:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}{rest}", thousands(whole))
}

/// A short form for the end of a bar: `12.3k`, `1.20M`.
pub fn short(value: f64) -> String {
    match value {
        v if v >= 999_500.0 => format!("{}M", figure(v / 1e6)),
        v if v >= 9_995.0 => format!("{}k", figure(v / 1e3)),
        v => figure(v),
    }
}

/// Microseconds in the unit that suits them: `84.2 µs`, `1.20 ms`, `3.00 s`.
pub fn micros(us: f64) -> String {
    match us {
        v if v >= 999_500.0 => format!("{}{SPACE}s", figure(v / 1e6)),
        v if v >= 999.5 => format!("{}{SPACE}ms", figure(v / 1e3)),
        v => format!("{}{SPACE}µs", figure(v)),
    }
}

/// A ratio as percent: `97 %`, `3.1 %`.
pub fn percent(ratio: f64) -> String {
    let value = ratio * 100.0;
    if value.abs() >= 9.95 || value == 0.0 {
        format!("{value:.0}{SPACE}%")
    } else {
        format!("{value:.1}{SPACE}%")
    }
}

/// How a ratio of two figures is said: `38 % less`, `12 % more`, `3.2 times as much`, `the same`.
pub fn change(ratio: f64) -> String {
    match ratio {
        r if r >= 2.0 => format!("{} times as much", figure(r)),
        r if r >= 1.0005 => format!("{} more", percent(r - 1.0)),
        r if r > 0.9995 => "the same".into(),
        r => format!("{} less", percent(1.0 - r)),
    }
}

/// Seconds since 1970 as `2026-02-11 10:22 UTC`.
pub fn date(unix: u64) -> String {
    // Days are counted from 1 March of year 0, so that a leap day is the last of its year.
    const TO_1970: u64 = 719_468;
    const CYCLE: u64 = 146_097;
    let days = unix / 86_400 + TO_1970;
    let in_cycle = days % CYCLE;
    let year_in_cycle =
        (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year_in_cycle + year_in_cycle / 4 - year_in_cycle / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = days / CYCLE * 400 + year_in_cycle + u64::from(month <= 2);
    let (hour, minute) = (unix / 3_600 % 24, unix / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// `1 thread`, `8 threads`.
pub fn threads(count: u32) -> String {
    if count == 1 { "1 thread".into() } else { format!("{count} threads") }
}

/// `text` with every character escaped that does not simply show itself: it may come from a file somebody sent.
pub fn printable(text: &str) -> String {
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

fn thousands(whole: &str) -> String {
    let mut out = String::with_capacity(whole.len() + whole.len() / 3);
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.001_234, "0.00123"),
            (0.0123, "0.0123"),
            (0.1234, "0.123"),
            (1.234, "1.23"),
            (9.999, "10.0"),
            (12.34, "12.3"),
            (99.96, "100"),
            (999.6, "1,000"),
            (1_234_567.8, "1,234,568"),
            (-1234.0, "-1,234"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(figure(value), text, "{value}");
        }
        assert_eq!(short(9_994.0), "9,994");
        assert_eq!(short(12_345.0), "12.3k");
        assert_eq!(short(1_200_000.0), "1.20M");
    }

    #[test]
    fn times_change_their_unit() {
        assert_eq!(micros(84.21), "84.2\u{a0}µs");
        assert_eq!(micros(999.4), "999\u{a0}µs");
        assert_eq!(micros(999.6), "1.00\u{a0}ms");
        assert_eq!(micros(2_500_000.0), "2.50\u{a0}s");
    }

    #[test]
    fn ratios_are_said_in_words() {
        assert_eq!(change(0.62), "38\u{a0}% less");
        assert_eq!(change(1.12), "12\u{a0}% more");
        assert_eq!(change(1.0), "the same");
        assert_eq!(change(3.2), "3.20 times as much");
        assert_eq!(percent(0.031), "3.1\u{a0}%");
    }

    #[test]
    fn dates_are_right_at_leap_days() {
        for (unix, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(unix), text);
        }
    }

    #[test]
    fn a_name_cannot_leave_its_line() {
        assert_eq!(printable("a\nb\u{1b}[31m\u{202e}c é"), "a\\nb\\u{1b}[31m\\u{202e}c é");
    }
}
