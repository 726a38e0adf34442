//! Commands that are about the shell itself, and those that need what no image here has.

use super::report::errno_text;
use super::table::{COMMANDS, find};
use super::{Call, Next, Shell, Stop, args, guide};
use block::Result as BlockResult;
use rustix::io::Errno;

/// The highest number that is taken for a signal.
const SIGNAL_MAX: u64 = 65;

/// `help`.
pub(super) fn help(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let [name] = call.words else {
        COMMANDS.iter().for_each(|command| shell.say(&command.usage()));
        shell.say("\nUse 'help commandname' for extended help.\n");
        return Ok(());
    };
    let Some(command) = find(name) else {
        return Err(shell.refuse(&format!("command {name} not found")));
    };
    shell.say(&command.usage());
    if let Some(text) = guide::of(command.name) {
        shell.say(&format!("\n{text}\n"));
    }
    Ok(())
}

/// `quit`.
pub(super) fn quit(_: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    Err(Stop::Next(Next::Quit))
}

/// `abort`.
pub(super) fn abort(_: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    Err(Stop::Next(Next::Abort))
}

/// `sigraise`.
pub(super) fn sigraise(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let text = call.words[0];
    let signal = shell.number(text)?;
    match i32::try_from(signal) {
        Ok(number) if signal <= SIGNAL_MAX => Err(Stop::Next(Next::Signal(number))),
        _ => {
            let what = format!("signal argument '{text}' is too large to be a valid signal");
            Err(shell.refuse(&what))
        }
    }
}

/// `sleep`: requests in the background go on meanwhile.
pub(super) fn sleep(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let text = call.words[0];
    let ms = args::integer(text).and_then(|ms| u64::try_from(ms).ok());
    let Some(ms) = ms else {
        return Err(shell.refuse(&format!("{text} is not a valid number")));
    };
    let context = shell.session.context().clone();
    let until = context.now_ns().saturating_add(ms.saturating_mul(1_000_000));
    let slept: BlockResult<()> = shell.session.run(async move {
        context.sleep_until(until).await;
        Ok(())
    });
    slept.map_err(|error| shell.fail_with(&error))
}

/// `break` and its kin: they need a filter that stops requests, which nobody has opened here.
pub(super) fn breakpoint(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let what = match call.command.name {
        "break" => "Could not set breakpoint".into(),
        "remove_break" => format!("Could not remove breakpoint {}", call.words[0]),
        "resume" => "Could not resume request".into(),
        _ => "Could not wait for breakpoint".to_owned(),
    };
    Err(shell.refuse(&format!("{what}: {}", errno_text(Errno::NOTSUP))))
}

/// The commands for devices with zones: no image is one.
pub(super) fn zone(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    call.words.iter().try_for_each(|word| shell.number(word).map(drop))?;
    let what = call.command.name.replace('_', " ");
    Err(shell.refuse(&format!("{what} failed: {}", errno_text(Errno::NOTSUP))))
}
