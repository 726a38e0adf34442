//! The HTML file, as text. What a browser makes of it is in `browser.rs`.

use super::sample;
use ffsb::report::{Report, html};

fn page_of(report: &Report) -> String {
    let mut out = Vec::new();
    html::write(&mut out, report).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn it_asks_for_nothing_and_runs_nothing() {
    for report in [sample::report(), sample::guest()] {
        let page = page_of(&report);
        for forbidden in
            ["http:", "https:", "//", "<script", "@import", "src=", "<iframe", " onload"]
        {
            // `://` and `url(//` are what a fetch would need; the style sheet has no comments.
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}

#[test]
fn what_comes_from_outside_stays_text() {
    let mut report = sample::report();
    let hostile = "<img src=x onerror=alert(1)>'\"&\u{202e}";
    report.subjects[1].name = format!("{hostile} one");
    report.subjects[2].server = format!("{hostile} two");
    report.scenarios[3] = format!("{hostile} three");
    report.remarks.push(format!("</div>{hostile}"));
    report.machine.push((hostile.into(), hostile.into()));
    report.settings.push((hostile.into(), hostile.into()));
    report.ferroblk = hostile.into();
    report.traces[0].stages[0].0 = hostile.into();
    sample::fail(&mut report, 2, 2, 8, hostile);
    let page = page_of(&report);
    assert!(!page.contains("<img") && !page.contains("\u{202e}"));
    assert_eq!(page.matches("</div>&lt;img").count(), 0);
    assert!(
        page.contains("&lt;/div&gt;&lt;img src=x onerror=alert(1)&gt;&#39;&quot;&amp;\\u{202e}")
    );
}

#[test]
fn it_is_not_too_large_for_a_mail() {
    let report = sample::large();
    assert_eq!((report.subjects.len(), report.scenarios.len()), (12, 8));
    let bytes = page_of(&report).len();
    assert!(bytes < 2_000_000, "{bytes}");
}

#[test]
fn failures_and_remarks_are_shown_and_empty_reports_too() {
    let page = page_of(&sample::report());
    assert!(page.contains("L2 table at 0x250000 is corrupt"));
    assert!(page.contains("1 of 192 cells could not be measured."));
    let page = page_of(&sample::guest());
    let remark = page.find("The guest is emulated").unwrap();
    assert!(remark < page.find("<svg viewBox").unwrap());
    assert!(page.contains("vCPU 0 %"));
    let mut empty = sample::report();
    empty.cells.clear();
    empty.traces.clear();
    let page = page_of(&empty);
    assert!(page.ends_with("</html>\n") && page.contains("Not measured."));
}

/// The colours of the style sheet's first (light) and second (dark) list: name and red, green, blue.
fn colours(page: &str, nth: usize) -> Vec<(String, [f64; 3])> {
    let list = page.split(":root {").nth(nth + 1).unwrap().split('}').next().unwrap();
    let parse = |entry: &str| {
        let (name, hex) = entry.trim().strip_prefix("--")?.split_once(": #")?;
        let part = |n: usize| u8::from_str_radix(&hex[n..n + 2], 16).map(|v| f64::from(v) / 255.0);
        Some((name.to_owned(), [part(0).ok()?, part(2).ok()?, part(4).ok()?]))
    };
    list.split(';').filter_map(parse).collect()
}

/// Contrast of two colours as WCAG 2 has it.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let light = |c: [f64; 3]| {
        let linear =
            c.map(|v| if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (a, b) = (light(a), light(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn every_colour_has_the_contrast_of_level_aa() {
    let page = page_of(&sample::report());
    for scheme in 0..2 {
        let all = colours(&page, scheme);
        let of =
            |name: &str| all.iter().find(|c| c.0 == name).unwrap_or_else(|| panic!("{name}")).1;
        for (text, grounds) in [
            ("text", &["bg", "soft", "note-bg", "r0", "r1", "r2", "r3", "r4"][..]),
            ("muted", &["bg", "soft"]),
            ("link", &["bg", "soft"]),
            ("bad", &["bg"]),
        ] {
            for ground in grounds {
                let ratio = contrast(of(text), of(ground));
                assert!(ratio >= 4.5, "{scheme}: {text} on {ground}: {ratio:.2}");
            }
        }
        for colour in ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "note-line"] {
            let ratio = contrast(of(colour), of("bg"));
            assert!(ratio >= 3.0, "{scheme}: {colour}: {ratio:.2}");
        }
    }
}
