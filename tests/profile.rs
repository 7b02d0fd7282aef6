//! A profile's file: whose it is, and what a passphrase does for it.
#![cfg(all(unix, feature = "server", feature = "client"))]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use waxwing::client::native::store::{FileStore, Profile, StoreError, change_passphrase, is_locked};

fn locked(path: &Path, passphrase: &str) -> Profile {
    Profile { path: path.to_owned(), passphrase: Some(passphrase.to_owned().into()) }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn entries(profile: &Profile) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    FileStore::open(profile).unwrap().entries(|name, value| found.push((name.to_owned(), value.to_owned()))).unwrap();
    found
}

/// What every test keeps: more than one transaction copies at once.
fn fill(profile: &Profile) -> Vec<(String, Vec<u8>)> {
    let mut kept: Vec<_> =
        (0..1500).map(|n| (format!("log/plain-to-see/{n:016x}"), format!("the words {n}").into_bytes())).collect();
    kept.push(("room/plain-to-see".to_owned(), b"the words".to_vec()));
    let changes: Vec<_> = kept.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
    let store = FileStore::open(profile).unwrap();
    store.write(&changes).unwrap();
    store.write(&[("gone".to_owned(), Some(b"the words".to_vec()))]).unwrap();
    store.write(&[("gone".to_owned(), None)]).unwrap();
    kept
}

/// Whether something of it can be read without a key.
fn is_readable(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    let shows = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    shows(b"plain-to-see") || shows(b"the words")
}

#[test]
fn a_profile_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("some/where");
    let profile = Profile::from(&place.join("profile"));
    let kept = fill(&profile);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&place), mode(&dir.path().join("some")), mode(&profile.path)), (0o700, 0o700, 0o600));
    for others in [0o640, 0o604, 0o622, 0o660] {
        set_mode(&profile.path, others);
        assert!(matches!(FileStore::open(&profile), Err(StoreError::Exposed(path)) if path == profile.path));
        assert!(matches!(is_locked(&profile.path), Err(StoreError::Exposed(_))));
    }
    set_mode(&profile.path, 0o600);
    set_mode(&place, 0o777);
    assert!(matches!(FileStore::open(&profile), Err(StoreError::Directory(path)) if path == place));
    for fine in [0o1777, 0o755, 0o700] {
        set_mode(&place, fine);
        assert_eq!(entries(&profile), kept);
    }
}

#[test]
fn a_passphrase_hides_everything_and_only_it_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile");
    let profile = locked(&path, "correct horse");
    assert!(!is_locked(&path).unwrap() && !path.exists(), "looking makes nothing");
    let kept = fill(&profile);
    assert!(is_locked(&path).unwrap() && !is_readable(&path));
    assert!(matches!(FileStore::open(&locked(&path, "correct hoarse")), Err(StoreError::Passphrase(_))));
    assert!(matches!(FileStore::open(&Profile::from(&path)), Err(StoreError::Locked(_))));
    assert_eq!(entries(&profile), kept, "in the order of their names");
    assert!(!is_readable(&path));
}

#[test]
fn a_passphrase_is_given_changed_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile");
    let (plain, first, second) = (Profile::from(&path), locked(&path, "the first one"), locked(&path, "the second one"));
    let kept = fill(&plain);
    assert!(is_readable(&path), "or the other checks say nothing");
    assert!(matches!(FileStore::open(&first), Err(StoreError::NotLocked(_))), "who asks for a lock is not served without");
    assert_eq!(entries(&plain), kept);

    change_passphrase(&plain, first.passphrase.clone()).unwrap();
    assert!(!is_readable(&path));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let wrapped_by_first = fs::read(&path).unwrap();

    change_passphrase(&first, second.passphrase.clone()).unwrap();
    assert!(matches!(FileStore::open(&first), Err(StoreError::Passphrase(_))));
    assert_eq!(entries(&second), kept);

    assert!(matches!(change_passphrase(&first, None), Err(StoreError::Passphrase(_))), "nobody takes it away without it");
    change_passphrase(&second, None).unwrap();
    assert_eq!(entries(&plain), kept);

    // An old copy opens with the old passphrase, but shares no key with what came after.
    let copy = dir.path().join("copy");
    fs::write(&copy, wrapped_by_first).unwrap();
    set_mode(&copy, 0o600);
    assert_eq!(entries(&locked(&copy, "the first one")), kept);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside them");
}

#[test]
fn an_interrupted_change_leaves_the_profile_and_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile");
    let profile = locked(&path, "correct horse");
    let kept = fill(&profile);
    // As far as it may have come: a whole file, in the clear, that did not take the other one's place.
    let beside = dir.path().join("profile.new");
    fill(&Profile::from(&beside));
    assert!(is_readable(&beside));
    assert_eq!(entries(&profile), kept);
    assert!(!beside.exists());
    // While somebody uses the profile nothing of it is changed.
    let held = FileStore::open(&profile).unwrap();
    assert!(matches!(change_passphrase(&profile, None), Err(StoreError::InUse(_))));
    drop(held);
    assert_eq!(entries(&profile), kept);
}

/// `waxwing` with a profile of its own.
struct Terminal {
    home: tempfile::TempDir,
}

impl Terminal {
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, args: &[&str], passphrase: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing"));
        command.args(args).env_clear().env("WAXWING_HOME", self.home.path().join("data")).current_dir(self.home.path());
        command.env("WAXWING_CLIENT_PASSPHRASE", "of the exported file");
        if let Some(passphrase) = passphrase {
            command.env("WAXWING_CLIENT_PROFILE_PASSPHRASE", passphrase);
        }
        command.stdin(std::process::Stdio::null()).output().unwrap()
    }

    fn says(&self, args: &[&str], passphrase: Option<&str>) -> String {
        let output = self.run(args, passphrase);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn complains(&self, args: &[&str], passphrase: Option<&str>) -> String {
        let output = self.run(args, passphrase);
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn the_command_line_gives_takes_and_wants_a_passphrase() {
    let terminal = Terminal { home: tempfile::tempdir().unwrap() };
    let (first, short) = (terminal.file("first", "the first one\n"), terminal.file("short", "short"));
    let (first, short) = (first.to_str().unwrap(), short.to_str().unwrap());
    let me = terminal.says(&["whoami", "--name", "Ann"], None);
    assert!(me.contains("name    Ann"));
    assert!(terminal.complains(&["passphrase", "--new-file", short], None).contains("at least 8 letters"));
    assert!(terminal.complains(&["passphrase"], None).contains("no passphrase was given"));
    terminal.says(&["passphrase", "--new-file", first], None);
    assert!(terminal.complains(&["whoami"], None).contains("--passphrase-file FILE or in WAXWING_CLIENT_PROFILE_PASSPHRASE"));
    assert!(terminal.complains(&["whoami"], Some("the wrong one")).contains("wrong passphrase"));
    assert_eq!(terminal.says(&["whoami"], Some("the first one")), me);
    assert_eq!(terminal.says(&["whoami", "--passphrase-file", first], Some("which is not looked at")), me);
    terminal.says(&["passphrase", "--remove"], Some("the first one"));
    assert_eq!(terminal.says(&["whoami"], None), me);
    assert!(terminal.complains(&["whoami"], Some("the first one")).contains("`waxwing passphrase`"));
}

#[test]
fn a_person_moves_by_an_exported_file_whatever_protects_the_profiles() {
    let (old, new) = (Terminal { home: tempfile::tempdir().unwrap() }, Terminal { home: tempfile::tempdir().unwrap() });
    let file = old.home.path().join("exported");
    let file = file.to_str().unwrap();
    let line = |said: &str, name: &str| said.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let me = old.says(&["whoami", "--name", "Ann"], Some("of the profile"));
    old.says(&["export", file], Some("of the profile"));
    assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
    assert!(old.complains(&["export", file], Some("of the profile")).contains("cannot make"), "never over another file");
    assert!(new.complains(&["import", "--passphrase-file", file, file], None).contains("cannot read"), "it is no text");
    let moved = new.says(&["import", file], Some("another profile's"));
    assert!(moved.contains("a device of that person"));
    let there = new.says(&["whoami"], Some("another profile's"));
    assert_eq!(line(&me, "person"), line(&there, "person"));
    assert_ne!(line(&me, "device"), line(&there, "device"));
}
