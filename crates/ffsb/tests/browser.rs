//! The HTML report in a real browser: Chromium without a window, driven over W3C WebDriver by ChromeDriver.
//!
//! With `FERROBLK_SCREENSHOTS=DIRECTORY` it leaves pictures of whole pages there, to be looked at.
#![allow(missing_docs, clippy::disallowed_methods)]

#[path = "report/sample.rs"]
#[allow(dead_code)]
mod sample;
mod webdriver;

use ffsb::report::{Report, html};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use webdriver::Browser;

/// Writes the report into a file, and opens it.
struct Page {
    browser: Browser,
    _dir: tempfile::TempDir,
}

impl Page {
    fn open(report: &Report, width: u32, scheme: &str) -> Option<Page> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        let mut bytes = Vec::new();
        html::write(&mut bytes, report).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let browser = Browser::start(dir.path())?;
        browser.set_screen(width, 900, scheme, "");
        browser.open(&path);
        Some(Page { browser, _dir: dir })
    }

    /// Fails with all that a script finds wrong: it gives a list of texts.
    fn expect_nothing(&self, what: &str, script: &str) {
        let found = self.browser.run(script);
        assert_eq!(found, json!([]), "{what}");
    }
}

fn screenshot(browser: &Browser, name: &str) {
    if let Some(dir) = std::env::var_os("FERROBLK_SCREENSHOTS") {
        std::fs::write(PathBuf::from(dir).join(name), browser.screenshot()).unwrap();
    }
}

#[test]
fn plots_and_tables_are_there_and_can_be_told_without_eyes() {
    let Some(page) = Page::open(&sample::report(), 1280, "light") else { return };
    // Ratios: one for each of 8 scenarios. Then 4 figures with a panel for 1, 8 and 16 threads. Stages: all, and 2 traces.
    let plots = page.browser.run("return document.querySelectorAll('svg[role=img]').length");
    assert_eq!(plots, json!(8 + 8 * 4 * 3 + 1 + 2));
    // Nearest, settings, subjects, ratios, a table for each scenario, two traces, failures.
    let tables = page.browser.run("return document.querySelectorAll('table').length");
    assert_eq!(tables, json!(4 + 8 + 2 + 1));
    page.expect_nothing(
        "plots without a size, a shape, a title or a description",
        "return [...document.querySelectorAll('svg[role=img]')].filter(svg => {
            const box = svg.getBoundingClientRect();
            const named = svg.getAttribute('aria-labelledby').split(' ')
                .every(id => document.getElementById(id)?.textContent.length > 5);
            return box.width < 250 || box.height < 60 || !named || /NaN|inf/.test(svg.innerHTML)
                || svg.querySelectorAll('rect, .mark').length < 2;
        }).map(svg => svg.outerHTML.slice(0, 300))",
    );
    page.expect_nothing(
        "tables without caption or heads with a scope",
        "return [...document.querySelectorAll('table')].filter(table =>
            !table.caption || !table.querySelector('thead th[scope=col]')
            || [...table.querySelectorAll('th')].some(th => !th.scope)
            || [...table.tBodies].some(body => !body.querySelector('tr th[scope=row]'))
        ).map(table => table.outerHTML.slice(0, 300))",
    );
    page.expect_nothing(
        "ids that are there twice, and links to nowhere",
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
         const links = [...document.querySelectorAll('a')].map(a => a.getAttribute('href').slice(1));
         return ids.filter((id, n) => ids.indexOf(id) !== n).concat(links.filter(l => !ids.includes(l)))",
    );
    page.expect_nothing(
        "landmarks and headings",
        "const wrong = ['html[lang=en]', 'header', 'nav[aria-label]', 'main#main', 'footer', 'head > title', 'h1']
            .filter(s => document.querySelectorAll(s).length !== 1);
         let before = 0;
         for (const h of document.querySelectorAll('h1, h2, h3, h4')) {
            const level = +h.tagName[1];
            if (level > before + 1) wrong.push(h.outerHTML);
            before = level;
         }
         return wrong",
    );
    screenshot(&page.browser, "report-1280-light.png");
}

#[test]
fn it_is_readable_on_a_telephone_in_the_dark_and_on_paper() {
    let Some(page) = Page::open(&sample::report(), 360, "light") else { return };
    let browser = &page.browser;
    let light = browser.run("return getComputedStyle(document.body).backgroundColor");
    for (width, scheme, media) in [
        (360, "light", ""),
        (360, "dark", ""),
        (800, "light", ""),
        (1280, "dark", ""),
        // The printable width of A4, on its side.
        (1030, "light", "print"),
    ] {
        browser.set_screen(width, 900, scheme, media);
        let case = format!("{width} {scheme} {media}");
        let wide = browser.run("return document.documentElement.scrollWidth");
        assert_eq!(wide, json!(width), "{case}: something is wider than the page");
        let background = browser.run("return getComputedStyle(document.body).backgroundColor");
        assert_eq!(background == light, scheme == "light", "{case}: {background}");
        page.expect_nothing(
            &format!("{case}: text that is cut off, or too small to read"),
            "return [...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
                const box = svg.getBoundingClientRect();
                const scale = box.width / svg.viewBox.baseVal.width;
                return [...svg.querySelectorAll('text')].filter(text => {
                    const t = text.getBoundingClientRect();
                    return t.right > box.right + 3 || t.left < box.left - 3 || 11 * scale < 9;
                }).map(text => text.textContent);
            }).filter((_, n) => n < 9)",
        );
        if media.is_empty() {
            screenshot(browser, &format!("report-{width}-{scheme}.png"));
        }
    }
}

#[test]
fn it_can_be_gone_through_with_the_keyboard() {
    let Some(page) = Page::open(&sample::report(), 360, "light") else { return };
    page.browser.press_tab();
    let first = page.browser.run(
        "const a = document.activeElement; return [a.className, a.getBoundingClientRect().left >= 0]",
    );
    assert_eq!(
        first,
        json!(["skip", true]),
        "the first stop is the link past the head, and is seen"
    );
    page.expect_nothing(
        "parts that scroll but cannot be reached, or have no name",
        "return [...document.querySelectorAll('*')].filter(e => {
            const scrolls = e.scrollWidth > e.clientWidth + 1
                && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
            return scrolls && (e.tabIndex !== 0 || !e.getAttribute('aria-label'));
        }).map(e => e.outerHTML.slice(0, 200))",
    );
}

#[test]
fn it_asks_for_nothing_and_complains_of_nothing() {
    for report in [sample::report(), sample::guest()] {
        let Some(page) = Page::open(&report, 1280, "light") else { return };
        let console = page.browser.log("browser");
        assert_eq!(console, json!([]), "the console");
        let events = page.browser.log("performance");
        let mut requests: Vec<String> = Vec::new();
        for event in events.as_array().unwrap() {
            let message: Value = serde_json::from_str(event["message"].as_str().unwrap()).unwrap();
            let message = &message["message"];
            let parameters = &message["params"];
            // The browser's own first page asks for much.
            let is_ours =
                parameters["documentURL"].as_str().is_some_and(|d| d.ends_with("/report.html"));
            if message["method"] == "Network.requestWillBeSent" && is_ours {
                requests.push(parameters["request"]["url"].as_str().unwrap().into());
            }
        }
        let own = requests.iter().filter(|r| r.ends_with("/report.html")).count();
        assert_eq!(own, 1, "the page itself is seen: {requests:?}");
        let others: Vec<_> = requests
            .iter()
            .filter(|r| !r.ends_with("/report.html") && !r.starts_with("data:"))
            .collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

#[test]
fn a_hostile_name_does_nothing() {
    let mut report = sample::report();
    let hostile = "\"'><img src=x onerror=\"window.hit=1\"><script>window.hit=1</script><svg onload=\"window.hit=1\">";
    report.subjects[1].name = hostile.into();
    report.scenarios[0] = format!("{hostile}!");
    report.remarks.push(hostile.into());
    report.traces[0].stages[0].0 = hostile.into();
    sample::fail(&mut report, 0, 2, 8, hostile);
    let Some(page) = Page::open(&report, 360, "light") else { return };
    let seen = page.browser.run(
        "return [window.hit === undefined, document.querySelectorAll('img, script, [onload], [onerror]').length,
                 document.querySelector('.note').textContent.includes('<script>')]",
    );
    assert_eq!(seen, json!([true, 0, true]));
    let wide = page.browser.run("return document.documentElement.scrollWidth");
    assert_eq!(wide, json!(360), "a long name does not widen the page");
}

#[test]
fn a_report_from_a_guest_and_one_without_figures_are_whole_pages_too() {
    let mut empty = sample::report();
    empty.cells.clear();
    empty.traces.clear();
    for (report, name) in [(sample::guest(), "guest"), (empty, "empty"), (sample::large(), "large")]
    {
        let Some(page) = Page::open(&report, 360, "light") else { return };
        let wide = page.browser.run("return document.documentElement.scrollWidth");
        assert_eq!(wide, json!(360), "{name}");
        let end = page.browser.run(
            "return document.querySelector('main').lastElementChild.ariaLabelledByElements[0].id",
        );
        assert_eq!(end, json!("reading"), "{name}: nothing is left open before the last part");
        page.browser.set_screen(1280, 900, "light", "");
        screenshot(&page.browser, &format!("{name}-1280-light.png"));
    }
}

/// Where a program is, if it is installed.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p: &PathBuf| Path::is_file(p))
}
