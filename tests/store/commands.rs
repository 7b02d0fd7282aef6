//! The commands as people type them, beside a server that is a process of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::migration::old_data;

/// A directory with what the processes keep: `data`, profiles, certificates.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing"));
        command.args(arguments).current_dir(self.path()).env("WAXWING_HOME", self.path().join("home")).env("USER", "ann");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, when it succeeds.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints and complains of, when it fails.
    fn fail(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A server process; killed when dropped.
struct Server {
    process: Child,
    /// Where it listens without TLS.
    address: String,
    /// Health and metrics.
    ops: String,
}

impl Server {
    fn start(place: &Path, place_of: &Place, plain: &str, data: &str) -> Self {
        let mut process = place_of
            .command(&["serve", "--listen", "127.0.0.1:0", "--listen-plain", plain, "--listen-ops", "127.0.0.1:0"])
            .args(["--data", data, "--set", "disk_reserve_bytes=0", "--log-level", "warn"])
            .current_dir(place)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut find = |name| out.find_map(|line| Some(line.unwrap().trim().strip_prefix(name)?.trim().to_owned())).unwrap();
        let (address, ops) = (find("Without TLS"), find("Health, metrics"));
        // It prints nothing more of interest; what it may print must not block it.
        std::thread::spawn(move || out.for_each(drop));
        Self { process, address, ops }
    }

    /// Ends it as an operator does.
    fn stop(mut self) {
        Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(self.process.wait().unwrap().success());
    }

    fn get(&self, path: &str) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(&self.ops).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_client_that_knew_the_former_life_is_told_keeps_its_copy_and_posts_on() {
    let place = Place::new();
    let server = Server::start(place.path(), &place, "127.0.0.1:0", "data");
    let origin = format!("http://{}", server.address);
    let link = place.succeed(&["create", "Bees", "--edge", &origin, "--transport", "ws"]);
    let link = link.trim();
    place.succeed(&["send", link, "one", "--transport", "ws"]);

    let socket = place.path().join("data/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let made = place.succeed(&["backup", "kept", "--data", "data"]);
    let (mut lines, whole) = (made.lines(), place.path().join("kept"));
    assert_eq!(lines.next().unwrap(), format!("backup    {}", fs::canonicalize(&whole).unwrap().display()));
    assert!(lines.next().unwrap().starts_with("made      20") && made.contains("\nrooms     2 (inboxes included)\n"), "{made}");
    let (_, refused) = place.fail(&["backup", "kept", "--data", "data"]);
    assert!(refused.contains("is not empty: a backup needs a new directory"), "{refused}");

    // What came after the backup is lost at the server, not at who has it.
    place.succeed(&["send", link, "two", "--transport", "ws"]);
    assert!(server.get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = server.get("/metrics");
    for metric in ["waxwing_store_backlog_bytes ", "waxwing_store_wal_bytes ", "waxwing_store_damaged_rooms 0"] {
        assert!(metrics.contains(metric), "{metric} is not in {metrics}");
    }
    for arguments in [["store", "check", "--data", "data"], ["store", "compact", "--data", "data"]] {
        let (_, locked) = place.fail(&arguments);
        assert!(locked.contains("a server has the store open: stop it first"), "{locked}");
    }
    let address = server.address.clone();
    server.stop();
    assert!(!socket.exists(), "the socket goes with its server");

    let (_, there) = place.fail(&["restore", "kept", "--data", "data"]);
    assert!(there.contains("a backup is restored only where no store is; move it away"), "{there}");
    let verified = place.succeed(&["restore", "kept", "--verify"]);
    assert!(verified.starts_with("whole     kept\n"), "{verified}");
    let restored = place.succeed(&["restore", "kept", "--data", "again"]);
    assert!(restored.starts_with("restored  again/store\n") && restored.contains("Now start the server."), "{restored}");
    assert!(place.succeed(&["store", "check", "--data", "again"]).ends_with("whole     nothing is wrong\n"));

    let server = Server::start(place.path(), &place, &address, "again");
    let output = place.run(&["send", link, "three", "--transport", "ws"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("the server's log of this room was replaced (restored from a backup?)"), "{told}");
    let tail = place.succeed(&["tail", link, "--once", "--transport", "ws"]);
    assert!(tail.contains("one") && tail.contains("three") && !tail.contains("two"), "{tail}");
    server.stop();
    // Its own copy of what the server lost is still in its profile.
    let profile = fs::read_dir(place.path().join("home")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(profile).unwrap();
    assert!(bytes.windows(7).any(|bytes| bytes == b"former/"), "the former life's records are kept");
}

#[test]
fn without_a_server_the_commands_open_the_store_themselves() {
    let place = Place::new();
    for arguments in [&["backup", "kept"][..], &["store", "check"], &["store", "compact"]] {
        let (_, nothing) = place.fail(arguments);
        assert!(nothing.contains("there is no store in data"), "{nothing}");
        assert!(!place.path().join("data/store").exists(), "and none is made");
    }
    // One of the first format.
    let old = old_data();
    fs::rename(old.path(), place.path().join("data")).unwrap();
    let (_, first) = place.fail(&["store", "check"]);
    assert!(first.contains("data/waxwing.redb is of the first format"), "{first}");
    let made = place.succeed(&["backup", "kept"]);
    assert!(made.starts_with("The store of the first format was brought over: 4 rooms and inboxes with 64 messages."), "{made}");
    assert!(made.contains("\nmessages  64, 13.8 KiB\n"), "{made}");
    let checked = place.succeed(&["store", "check"]);
    let lines =
        "rooms     4 (inboxes included)\nmessages  64, 13.8 KiB\nlog       0 messages that are not in the history file yet\n";
    assert!(checked.contains(lines), "{checked}");
    let compacted = place.succeed(&["store", "compact"]);
    assert!(compacted.starts_with("compacted  data/store\nbefore     "), "{compacted}");
    // A file that was changed is named.
    let manifest = place.path().join("kept/manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap().replace("sha256 = \"", "sha256 = \"00");
    fs::write(&manifest, text).unwrap();
    let (_, changed) = place.fail(&["restore", "kept", "--verify"]);
    assert!(changed.contains("it was changed or damaged"), "{changed}");
    let (_, none) = place.fail(&["restore", "data", "--verify"]);
    assert!(none.contains("is not a whole backup: it has no manifest.toml"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_answers_what_it_does_not_understand_and_takes_no_more_than_it_says() {
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};
    use waxwing::server::control::{self, FRAME_MAX, Failure, Reply, Request, VERSION};
    let place = Place::new();
    let _server = Server::start(place.path(), &place, "127.0.0.1:0", "data");
    let socket = place.path().join("data/control.sock");
    let connect = || UnixStream::connect(&socket);
    let relative = Request::Backup { version: VERSION, directory: "kept".into() };
    let newer = Request::Backup { version: VERSION + 1, directory: place.path().join("kept") };
    for (request, told) in [(relative, "not absolute"), (newer, "another version")] {
        let mut stream = connect().await.unwrap();
        control::send(&mut stream, &request).await.unwrap();
        let Reply::Failed { failure: Failure::Request, why } = control::receive(&mut stream).await.unwrap() else { panic!() };
        assert!(why.contains(told), "{why}");
    }
    for bytes in [&[1, 0, 0, 0, 0xff][..], &(FRAME_MAX + 1).to_le_bytes()] {
        let mut stream = connect().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let reply: Reply = control::receive(&mut stream).await.unwrap();
        assert!(matches!(reply, Reply::Failed { failure: Failure::Request, .. }), "{reply:?}");
    }
    // Who only connects holds one of a few places, and not for ever; the others are served.
    let idle = connect().await.unwrap();
    assert!(place.succeed(&["backup", "kept"]).contains("messages  0, 0 bytes"));
    drop(idle);
}

#[test]
fn a_server_brings_the_first_format_over_as_it_starts() {
    let place = Place::new();
    fs::rename(old_data().path(), place.path().join("data")).unwrap();
    let server = Server::start(place.path(), &place, "127.0.0.1:0", "data");
    assert!(place.path().join("data/waxwing.redb.format-1").exists());
    let made = place.succeed(&["backup", "kept"]);
    assert!(made.contains("\nmessages  64, 13.8 KiB\n"), "{made}");
    server.stop();
}

#[test]
fn a_data_directory_of_any_length_has_a_control_socket() {
    let place = Place::new();
    // One letter less than is too long for a socket, and more and more.
    let fits = 107 - "/control.sock".len();
    for len in [fits, fits + 1, fits + 150] {
        let above = place.path().to_str().unwrap().len() + 1;
        let data = place.path().join("d".repeat(len - above));
        let data = data.to_str().unwrap();
        let server = Server::start(place.path(), &place, "127.0.0.1:0", data);
        let kept = format!("kept-{len}");
        // The store is locked: only the server can have made it.
        assert!(place.succeed(&["backup", &kept, "--data", data]).contains("messages  0, 0 bytes"));
        server.stop();
        assert!(!Path::new(data).join("control.sock").exists(), "the socket goes with its server");
    }
}

#[test]
fn a_backup_on_a_read_only_mount_is_verified_and_restored() {
    let place = Place::new();
    fs::rename(old_data().path(), place.path().join("data")).unwrap();
    place.succeed(&["backup", "kept"]);
    // Permissions bind whoever is not root.
    let kept = place.path().join("kept");
    let names = || fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
    names().for_each(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap());
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o500)).unwrap();
    let verified = place.succeed(&["restore", "kept", "--verify"]);
    assert!(verified.starts_with("whole     kept\n"), "{verified}");
    let restored = place.succeed(&["restore", "kept", "--data", "first"]);
    assert!(restored.contains("\nmessages  64, 13.8 KiB\n"), "{restored}");
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o700)).unwrap();

    // A read-only mount binds everybody.
    let mounted = "mount --bind kept kept && mount -o remount,bind,ro kept";
    let namespace = |script: &str| {
        let user = if fs::metadata("/proc/self").unwrap().uid() == 0 { "-m" } else { "-rm" };
        let script = format!("{mounted} && {script}");
        let mut command = Command::new("unshare");
        command.args([user, "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_waxwing")]).current_dir(place.path());
        command.output()
    };
    if !namespace("true").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system lets nobody mount in a namespace of its own");
        return;
    }
    assert!(!namespace("touch kept/new").unwrap().status.success(), "it cannot be written to");
    for arguments in ["restore kept --verify", "restore kept --data second"] {
        let output = namespace(&format!("\"$1\" {arguments}")).unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(place.succeed(&["store", "check", "--data", "second"]).ends_with("whole     nothing is wrong\n"));
}
