use super::*;

fn flags(pairs: &[(&str, &str)]) -> Sources {
    Sources { flags: pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(), ..Sources::default() }
}

#[test]
fn later_layers_win_and_are_told() {
    let sources = Sources {
        file: Some(("waxwing.toml".into(), "shards = 1\ndata = \"a\"\ncerts_dir = \"c\"\n[limits]\nroom_bytes_max = 7\n".into())),
        dot_env: vec![("WAXWING_SHARDS".into(), "2".into()), ("WAXWING_DATA".into(), "b".into())],
        environment: vec![
            ("WAXWING_SHARDS".into(), "3".into()),
            ("WAXWING_LIMITS_IDLE_TIMEOUT_MS".into(), "9_000".into()),
            ("WAXWING_TRUSTED_PROXIES".into(), "10.0.0.0/8, ::1".into()),
            ("WAXWING_PAGE".into(), "0".into()),
            ("PATH".into(), "/bin".into()),
        ],
        flags: vec![("shards".into(), "4".into())],
    };
    let effective = load(&sources).unwrap();
    assert_eq!(effective.config.shards, 4);
    assert_eq!(effective.config.data, PathBuf::from("b"));
    assert_eq!(effective.config.certs_dir, PathBuf::from("c"));
    assert_eq!(effective.config.limits.room_bytes_max, 7);
    assert_eq!(effective.config.limits.idle_timeout_ms, 9000);
    assert_eq!(effective.config.trusted_proxies.len(), 2);
    assert_eq!(effective.origin("shards"), Origin::Flag);
    let shown = effective.to_string();
    for line in [
        "shards = 4  # flag",
        "data = \"b\"  # .env WAXWING_DATA",
        "certs_dir = \"c\"  # file waxwing.toml",
        "limits.idle_timeout_ms = 9000  # environment WAXWING_LIMITS_IDLE_TIMEOUT_MS",
        "connections_max = 50000  # default",
        "# cert is not set",
    ] {
        assert!(shown.contains(line), "{line}\nis not in\n{shown}");
    }
}

#[test]
fn each_bad_value_names_its_key_its_value_and_what_is_allowed() {
    for (key, value, allowed) in [
        ("listen", "localhost", "127.0.0.1:4433"),
        ("listen", "127.0.0.1:99999", "127.0.0.1:4433"),
        ("listen_ops", "9433", "127.0.0.1:4433"),
        ("listen_plain", "0.0.0.0:8433", "listen_plain_anywhere"),
        ("listen_plain_anywhere", "yes", "true or false"),
        ("data", "", "a directory"),
        ("shards", "-1", "64"),
        ("shards", "many", "64"),
        ("shards", "2000", "64"),
        ("connections_max", "0", "1 or more"),
        ("stall_timeout_ms", "999", "1000 or more"),
        ("disk_reserve_bytes", "1GB", "bytes"),
        ("auth", "none", "\"open\""),
        ("log_format", "xml", "\"human\" or \"json\""),
        ("log_level", "waxwing=loud", "a filter"),
        ("public_names", "https://chat.example", "without a scheme"),
        ("public_quic", "chat.example", "chat.example:4433"),
        ("allowed_origins", "chat.example", "https://app.example"),
        ("allowed_origins", "https://chat.example/path", "without a path"),
        ("trusted_proxies", "proxy.example", "10.0.0.0/8"),
        ("limits.envelope_bytes_max", "0", "4294967295"),
        ("limits.envelope_bytes_max", "5000000000", "4294967295"),
        ("limits.envelope_bytes_max", "1", "at least 2048"),
        ("limits.frame_bytes_max", "5000", "limits.envelope_bytes_max"),
        ("limits.handshake_bytes_max", "3145729", "at most 3145728"),
        ("limits.frame_bytes_max", "70000", "limits.handshake_bytes_max"),
        ("limits.idle_timeout_ms", "10", "at least 1000"),
        ("store.commit_wait_us", "2001", "from 0 to 2000"),
        ("store.wal_bytes_max", "1000", "at least 33554432"),
        ("store.apply_bytes", "300000000", "at most half of store.wal_bytes_max"),
        ("retention.max_age_days", "0", "1 or more"),
        ("retention.sweep_minutes", "0", "1 or more"),
        ("retention.rooms.BwcHBwcHBwcHBwcHBwcHBw.max_count", "few", "1 or more"),
    ] {
        let Err(Errors(errors)) = load(&flags(&[(key, value)])) else { panic!("{key} = {value} was accepted") };
        let told = errors.iter().map(ToString::to_string).find(|text| text.starts_with(&format!("{key} = ")));
        let told = told.unwrap_or_else(|| panic!("{key} is not named: {errors:?}"));
        assert!(told.contains(value) && told.contains("(flag)"), "{told}");
        assert!(told.contains(allowed), "{told} does not say {allowed}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    let one = |sources: &Sources| load(sources).unwrap_err().to_string();
    let file = |text: &str| Sources { file: Some(("waxwing.toml".into(), text.into())), ..Sources::default() };
    assert_eq!(one(&file("lisen = []")), "unknown key lisen (file waxwing.toml); did you mean listen?");
    assert_eq!(
        one(&file("[limits]\nenvelope_byte_max = 1")),
        "unknown key limits.envelope_byte_max (file waxwing.toml); did you mean limits.envelope_bytes_max?"
    );
    let environment = Sources { environment: vec![("WAXWING_DAATA".into(), "x".into())], ..Sources::default() };
    assert!(one(&environment).contains("did you mean WAXWING_DATA?"), "{}", one(&environment));
    assert!(one(&flags(&[("zzz", "1")])).contains("waxwing config"));
    assert!(one(&file("listen = ")).starts_with("cannot read waxwing.toml"));
}

#[test]
fn rooms_have_a_retention_of_their_own() {
    let text = "[retention]\nmax_age_days = 90\n[retention.rooms.\"07070707070707070707070707070707\"]\nmax_count = 10\n\
                [retention.rooms.CAgICAgICAgICAgICAgICA]\nmax_bytes = 5\n";
    let sources = Sources {
        file: Some(("waxwing.toml".into(), text.into())),
        flags: vec![("retention.rooms.BwcHBwcHBwcHBwcHBwcHBw.max_count".into(), "11".into())],
        ..Sources::default()
    };
    let effective = load(&sources).unwrap();
    let retention = &effective.config.retention;
    assert_eq!(retention.default, Keep { max_age_days: Some(90), ..Keep::default() });
    let rooms: Vec<_> = retention.rooms.iter().map(|(room, keep)| (room.0[0], keep.max_count, keep.max_bytes)).collect();
    assert_eq!(rooms, [(7, Some(11), None), (8, None, Some(5))]);
    let shown = effective.to_string();
    for line in ["retention.max_age_days = 90  # file", "retention.rooms.BwcHBwcHBwcHBwcHBwcHBw.max_count = 11  # flag"] {
        assert!(shown.contains(line), "{line}\nis not in\n{shown}");
    }
    let wrong = |key: &str| load(&flags(&[(key, "1")])).unwrap_err().to_string();
    assert!(wrong("retention.rooms.nobody.max_count").contains("nobody (flag) is not accepted: a room's id"));
    assert!(wrong("retention.rooms.BwcHBwcHBwcHBwcHBwcHBw.max_coun").starts_with("unknown key"));
}

#[test]
fn a_server_that_others_reach_needs_auth_names_and_a_certificate() {
    let all = load(&flags(&[("listen", "0.0.0.0:4433")])).unwrap_err().to_string();
    for part in ["auth = (not set)", "public_names = []", "cert = (not set)", "listen = 0.0.0.0:4433", "auth = \"open\""] {
        assert!(all.contains(part), "{part} is not in {all}");
    }
    let safe = flags(&[
        ("listen", "0.0.0.0:4433"),
        ("auth", "open"),
        ("public_names", "chat.example"),
        ("cert", "cert.pem"),
        ("key", "key.pem"),
    ]);
    let effective = load(&safe).unwrap();
    assert!(!effective.config.is_development());
    assert!(effective.config.listen_plain.is_empty(), "the plain listener is a default of development only");
    assert!(load(&flags(&[("cert", "cert.pem")])).unwrap_err().to_string().starts_with("key = (not set)"));
}

#[test]
fn token_authentication_needs_a_secret_and_never_shows_it() {
    let none = load(&flags(&[("auth", "token")])).unwrap_err().to_string();
    assert!(none.contains("token_secret_file"), "{none}");
    let short = load(&flags(&[("auth", "token"), ("token_secret", "hunter2")])).unwrap_err().to_string();
    assert!(short.contains("32 bytes") && !short.contains("hunter2"), "{short}");
    let secret = "0123456789abcdef0123456789abcdef";
    let effective = load(&flags(&[("auth", "token"), ("token_secret", secret)])).unwrap();
    assert!(!effective.to_string().contains(secret));
    assert!(!format!("{:?}", effective.config).contains("48, 49"));
}

#[test]
fn the_sample_files_are_valid_and_say_the_defaults() {
    let sample = include_str!("../../waxwing.example.toml");
    load(&Sources { file: Some(("waxwing.example.toml".into(), sample.into())), ..Sources::default() }).unwrap();
    // With every line switched on, the sample still holds the defaults, so it cannot go stale.
    let all: String = sample.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
    let effective = load(&Sources { file: Some(("x".into(), all)), ..Sources::default() }).unwrap();
    let default = Config::default();
    assert_eq!(effective.config.limits, default.limits);
    for (key, shown) in keys::keys().iter().map(|key| (&key.name, (key.show)(&effective.config))) {
        let found = keys::keys().into_iter().find(|other| other.name == *key).unwrap();
        assert_eq!(shown, (found.show)(&default), "{key}");
        let optional = shown.is_none();
        assert!(optional || effective.origin(key) != Origin::Default, "{key} is not in the sample");
    }
    let variables =
        include_str!("../../.env.example").lines().filter_map(|line| line.trim_start_matches('#').trim().split_once('='));
    let dot_env: Vec<_> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert!(!dot_env.is_empty());
    for pair in dot_env {
        let unknown = load(&Sources { dot_env: vec![pair.clone()], ..Sources::default() });
        let Err(Errors(errors)) = unknown else { continue };
        assert!(!errors.iter().any(|error| matches!(error, ConfigError::Unknown { .. })), "{pair:?}: {errors:?}");
    }
}
