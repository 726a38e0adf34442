//! A hostile front end: arbitrary bytes become its messages, valid, nearly valid and nonsense, with file descriptors from a menu.
//!
//! The interpreter of the bytes is the one of the seeded test `crates/export/tests/vhost_user_malformed.rs`, see `script.rs` there.

#![no_main]

#[path = "../../crates/export/tests/common/mod.rs"]
mod common;
#[path = "../../crates/export/tests/common/script.rs"]
mod script;

use common::FakeDevice;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MENU: script::Menu = script::Menu::new();
}

fuzz_target!(|input: &[u8]| {
    MENU.with(|menu| script::run(input, menu, &mut FakeDevice::default()));
});
