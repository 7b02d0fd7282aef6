//! Layers: where each value comes from, and what is wrong with it.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use toml::Value;

use super::{
    Config,
    keys::{self, Key},
    retention, validate,
};

/// Environment variables of this prefix are ours, and must be known.
const PREFIX: &str = "WAXWING_";
/// Variables of the prefix that are not configuration of the server: for the build script, the client, the tests.
const OTHERS: [&str; 6] =
    ["WAXWING_CONFIG", "WAXWING_BUILD_", "WAXWING_PAGE", "WAXWING_HOME", "WAXWING_CLIENT_", "WAXWING_TEST_"];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A variable in `.env`.
    DotEnv(String),
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::DotEnv(name) => write!(f, ".env {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// Why the configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("unknown key {key} ({origin}); {}", hint(nearest.as_deref()))]
    Unknown {
        /// The key.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// A value that its key does not take.
    #[error("{key} = {value} ({origin}) is not accepted: {allowed}")]
    Invalid {
        /// The key.
        key: String,
        /// The value, as it was given.
        value: String,
        /// Where it comes from.
        origin: Origin,
        /// What is accepted.
        allowed: String,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| "run `waxwing config` for all keys".into(), |nearest| format!("did you mean {nearest}?"))
}

/// Everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
pub struct Errors(pub Vec<ConfigError>);

/// What the layers say, unparsed.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Path and text of the configuration file.
    pub file: Option<(PathBuf, String)>,
    /// Variables of `.env`.
    pub dot_env: Vec<(String, String)>,
    /// Environment variables; those that are not ours are ignored.
    pub environment: Vec<(String, String)>,
    /// Keys and values of flags.
    pub flags: Vec<(String, String)>,
}

/// A configuration that may run, and where its values come from.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The configuration.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

impl Effective {
    /// Where a key's value comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

impl fmt::Display for Effective {
    /// One line a key, as TOML with the origin behind it. Secrets are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for key in keys::keys().into_iter().chain(retention::keys_of_rooms(&self.config)) {
            match (key.show)(&self.config) {
                Some(value) => writeln!(f, "{} = {value}  # {}", key.name, self.origin(&key.name))?,
                None => writeln!(f, "# {} is not set", key.name)?,
            }
        }
        Ok(())
    }
}

struct Layers {
    keys: Vec<Key>,
    config: Config,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
}

impl Layers {
    /// The name of a key as it is always spelled. Keys of single rooms are not in the table until they are named.
    fn known(&mut self, name: &str, origin: &Origin) -> Option<String> {
        match retention::room_key(name) {
            None => Some(name.to_owned()),
            Some(Ok(name)) => {
                if !self.keys.iter().any(|key| key.name == name) {
                    self.keys.extend(retention::find(&name));
                }
                Some(name)
            }
            Some(Err(room)) => {
                let allowed = retention::ROOM_ALLOWED.to_owned();
                self.errors.push(ConfigError::Invalid { key: name.into(), value: room, origin: origin.clone(), allowed });
                None
            }
        }
    }

    fn apply(&mut self, name: &str, value: &Value, origin: Origin) {
        let Some(name) = self.known(name, &origin) else { return };
        let name = name.as_str();
        let Some(key) = self.keys.iter().find(|key| key.name == name) else {
            let nearest = nearest(name, self.keys.iter().map(|key| key.name.clone()));
            self.errors.push(ConfigError::Unknown { key: name.into(), origin, nearest });
            return;
        };
        if (key.set)(&mut self.config, value).is_some() {
            self.origins.insert(name.into(), origin);
        } else {
            let value = if name == "token_secret" { "(not shown)".into() } else { value.to_string() };
            let allowed = key.allowed.clone();
            self.errors.push(ConfigError::Invalid { key: name.into(), value, origin, allowed });
        }
    }

    fn apply_text(&mut self, name: &str, text: &str, origin: Origin) {
        let Some(name) = self.known(name, &origin) else { return };
        let name = name.as_str();
        let value = self.keys.iter().find(|key| key.name == name).map(|key| (key.read(text), key.allowed.clone()));
        match value {
            Some((None, allowed)) => {
                self.errors.push(ConfigError::Invalid { key: name.into(), value: text.into(), origin, allowed });
            }
            Some((Some(value), _)) => self.apply(name, &value, origin),
            None => self.apply(name, &Value::String(text.into()), origin),
        }
    }

    fn file(&mut self, path: &std::path::Path, text: &str) {
        match text.parse::<toml::Table>() {
            Ok(table) => self.table("", &table, path),
            Err(error) => self.errors.push(ConfigError::File { path: path.into(), why: error.to_string() }),
        }
    }

    fn table(&mut self, prefix: &str, table: &toml::Table, path: &std::path::Path) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                Value::Table(inner) => self.table(&format!("{name}."), inner, path),
                value => self.apply(&name, value, Origin::File(path.into())),
            }
        }
    }

    fn variables(&mut self, variables: &[(String, String)], origin: fn(String) -> Origin) {
        for (variable, text) in variables {
            if !variable.starts_with(PREFIX) || OTHERS.iter().any(|other| variable.starts_with(other)) {
                continue;
            }
            let found = self.keys.iter().find(|key| key.variable() == *variable).map(|key| key.name.clone());
            match found {
                Some(name) => self.apply_text(&name, text, origin(variable.clone())),
                None => {
                    let nearest = nearest(variable, self.keys.iter().map(Key::variable));
                    self.errors.push(ConfigError::Unknown { key: variable.clone(), origin: origin(variable.clone()), nearest });
                }
            }
        }
    }
}

/// The nearest of `names`, if it is near.
fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let scored = names.map(|name| (strsim::jaro_winkler(wrong, &name), name));
    scored.filter(|(score, _)| *score > 0.7).max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

/// Merges the layers and checks the result.
///
/// # Errors
/// All that is wrong, each with its key, its value and what is allowed.
pub fn load(sources: &Sources) -> Result<Effective, Errors> {
    let mut layers = Layers { keys: keys::keys(), config: Config::default(), origins: BTreeMap::new(), errors: Vec::new() };
    if let Some((path, text)) = &sources.file {
        layers.file(path, text);
    }
    layers.variables(&sources.dot_env, Origin::DotEnv);
    layers.variables(&sources.environment, Origin::Environment);
    for (name, text) in &sources.flags {
        layers.apply_text(name, text, Origin::Flag);
    }
    if !layers.errors.is_empty() {
        return Err(Errors(layers.errors));
    }
    let mut effective = Effective { config: layers.config, origins: layers.origins };
    if effective.origin("listen_plain") == Origin::Default && !development_but_for_plain(&effective.config) {
        effective.config.listen_plain.clear();
    }
    let errors = validate::check(&effective);
    if errors.is_empty() { Ok(effective) } else { Err(Errors(errors)) }
}

fn development_but_for_plain(config: &Config) -> bool {
    Config { listen_plain: Vec::new(), ..config.clone() }.is_development()
}
