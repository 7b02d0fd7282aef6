//! Passphrases: from a file, from the environment, or typed unseen.

use std::{
    env, fs,
    io::{self, BufRead as _, IsTerminal as _},
    path::Path,
};

use anyhow::{Context as _, ensure};
use zeroize::Zeroizing;

pub(super) type Passphrase = Zeroizing<String>;

fn one_line(mut text: String) -> Passphrase {
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Zeroizing::new(text)
}

/// What a file holds, without the end of its line.
pub(super) fn in_file(path: &Path) -> anyhow::Result<Passphrase> {
    Ok(one_line(fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?))
}

/// What a variable holds, if it is set.
pub(super) fn in_environment(variable: &str) -> Option<Passphrase> {
    env::var(variable).ok().map(Zeroizing::new)
}

/// A line of standard input; of a terminal, one that is not shown.
pub(super) fn asked(what: &str) -> anyhow::Result<Passphrase> {
    let terminal = io::stdin().is_terminal();
    let hidden = terminal.then(Hidden::new);
    if terminal {
        super::complain(&format!("{what}:"));
    }
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    drop(hidden);
    ensure!(read? > 0, "no passphrase was given");
    Ok(one_line(line))
}

/// A passphrase for something that has none yet. Who types it unseen types it twice.
pub(super) fn chosen(what: &str) -> anyhow::Result<Passphrase> {
    let passphrase = strong(asked(what)?)?;
    if io::stdin().is_terminal() {
        ensure!(asked("the same once more")? == passphrase, "that was not the same");
    }
    Ok(passphrase)
}

/// Refuses one that is guessed at once.
pub(super) fn strong(passphrase: Passphrase) -> anyhow::Result<Passphrase> {
    ensure!(passphrase.len() >= 8, "the passphrase needs at least 8 letters: who guesses it has your identity and your rooms");
    Ok(passphrase)
}

/// While it lives, the terminal shows nothing of what is typed.
struct Hidden {
    #[cfg(unix)]
    before: Option<rustix::termios::Termios>,
}

#[cfg(unix)]
impl Hidden {
    fn new() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut modes) = before.clone() {
            modes.local_modes.remove(LocalModes::ECHO);
            // Where this fails it is shown, which is no reason not to go on.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &modes);
        }
        Self { before }
    }
}

#[cfg(unix)]
impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, before);
        }
    }
}

#[cfg(not(unix))]
impl Hidden {
    const fn new() -> Self {
        Self {}
    }
}
