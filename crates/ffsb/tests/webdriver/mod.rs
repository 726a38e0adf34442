//! As much of a WebDriver client as the tests need: JSON over HTTP to ChromeDriver on this machine.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long an answer may take that is there in no time. A test that meets this limit has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser without a window, which ends with this.
pub struct Browser {
    driver: Driver,
    session: String,
}

/// ChromeDriver, which ends with this.
struct Driver {
    child: Child,
    port: u16,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; its profile goes with the test's directory.
        let _ = self.driver.ask("DELETE", &format!("/session/{}", self.session), None);
    }
}

impl Browser {
    /// Starts one that keeps its profile in `dir`; `None` where there is none, which fails in continuous integration.
    pub fn start(dir: &Path) -> Option<Browser> {
        for program in ["chromium", "chromedriver"] {
            if super::find(program).is_none() {
                println!("SKIPPED: {program} is not installed; `cargo xtask setup` installs it");
                assert!(std::env::var_os("CI").is_none(), "no test may be skipped here");
                return None;
            }
        }
        let driver = Driver::start();
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            &profile,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let value = driver.ask("POST", "/session", Some(&wanted)).expect("a session");
        let session = value["sessionId"].as_str().expect("its id").to_owned();
        Some(Browser { driver, session })
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{path}", self.session);
        self.driver.ask("POST", &path, Some(body)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// Width and height in CSS pixels, `light` or `dark`, and `print` or nothing.
    pub fn set_screen(&self, width: u32, height: u32, scheme: &str, media: &str) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({"media": media, "features": features}));
    }

    /// Opens a file, and waits until it is loaded.
    pub fn open(&self, path: &Path) {
        self.post("url", &json!({"url": format!("file://{}", path.display())}));
    }

    /// Runs a script in the page, and gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// What was logged since it was last asked.
    pub fn log(&self, kind: &str) -> Value {
        self.post("se/log", &json!({"type": kind}))
    }

    /// Presses the tabulator key.
    pub fn press_tab(&self) {
        let key = |kind: &str| json!({"type": kind, "value": "\u{e004}"});
        let actions =
            json!([{"type": "key", "id": "keys", "actions": [key("keyDown"), key("keyUp")]}]);
        self.post("actions", &json!({"actions": actions}));
    }

    /// A picture of the whole page, as PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let size = self.run(
            "const e = document.documentElement; return [e.clientWidth, Math.min(e.scrollHeight, 16000)]",
        );
        let clip = json!({"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1});
        let wanted = json!({"captureBeyondViewport": true, "clip": clip});
        let picture = self.devtools("Page.captureScreenshot", &wanted);
        decode_base64(picture["data"].as_str().expect("a picture"))
    }
}

impl Driver {
    fn start() -> Driver {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let out = child.stdout.take().expect("a pipe");
        // It chooses a port, and says which when it listens.
        let mut lines = BufReader::new(out).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let rest = line.split_once("started successfully on port ")?.1;
            rest.trim_end_matches('.').parse().ok()
        });
        Driver { child, port: port.expect("chromedriver says its port") }
    }

    /// One request; what the answer has as `value`, or the error it tells.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let fail = |e: std::io::Error| e.to_string();
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).map_err(fail)?;
        stream.write_all(body.as_bytes()).map_err(fail)?;
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status).map_err(fail)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).map_err(fail)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(|_| format!("a length: {line}"))?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(fail)?;
        let mut answer: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        let value = answer["value"].take();
        if status.contains(" 200 ") { Ok(value) } else { Err(value["message"].to_string()) }
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let six_bits = |c: u8| (0u32..).zip(LETTERS).find(|(_, l)| **l == c).expect("base64").0;
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits =
            four.iter().fold(0, |bits, c| bits << 6 | six_bits(*c)) << (6 * (4 - four.len()));
        out.extend(&bits.to_be_bytes()[1..four.len()]);
    }
    out
}
