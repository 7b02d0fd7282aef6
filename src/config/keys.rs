//! The one table of keys: their names, what they take, how they are shown and set.

use std::{fmt::Display, path::PathBuf, str::FromStr};

use toml::Value;

use super::{Auth, Config, LogFormat, Secret, retention};
use crate::core::limits::Limits;

/// How text (an environment variable, a flag) becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    /// Separated by commas.
    List,
    Integer,
    Bool,
}

/// The value of a key; `None` when it is not set.
type Show = Box<dyn Fn(&Config) -> Option<Value>>;
/// Sets a key; `None` when the value is not one of its.
type Set = Box<dyn Fn(&mut Config, &Value) -> Option<()>>;

pub(super) struct Key {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) allowed: String,
    pub(super) show: Show,
    pub(super) set: Set,
}

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("WAXWING_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// A value from text; `None` when it cannot be one.
    pub(super) fn read(&self, text: &str) -> Option<Value> {
        match self.shape {
            Shape::Text => Some(Value::String(text.into())),
            Shape::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.into())).collect()))
            }
            Shape::Integer => text.trim().replace('_', "").parse().ok().map(Value::Integer),
            Shape::Bool => text.trim().parse().ok().map(Value::Boolean),
        }
    }
}

pub(super) fn key(
    name: &str,
    shape: Shape,
    allowed: &str,
    show: impl Fn(&Config) -> Option<Value> + 'static,
    set: impl Fn(&mut Config, &Value) -> Option<()> + 'static,
) -> Key {
    Key { name: name.into(), shape, allowed: allowed.into(), show: Box::new(show), set: Box::new(set) }
}

fn list<T: FromStr + Display + 'static>(name: &str, allowed: &str, field: fn(&mut Config) -> &mut Vec<T>) -> Key {
    let show = move |config: &Config| {
        let mut config = config.clone();
        Some(Value::Array(field(&mut config).iter().map(|item| Value::String(item.to_string())).collect()))
    };
    let set = move |config: &mut Config, value: &Value| {
        let items = value.as_array()?.iter().map(|item| item.as_str()?.trim().parse().ok());
        *field(config) = items.collect::<Option<Vec<T>>>()?;
        Some(())
    };
    key(name, Shape::List, allowed, show, set)
}

fn path(name: &str, allowed: &str, field: fn(&mut Config) -> &mut Option<PathBuf>) -> Key {
    let show = move |config: &Config| {
        let mut config = config.clone();
        field(&mut config).as_ref().map(|path| Value::String(path.display().to_string()))
    };
    let set = move |config: &mut Config, value: &Value| {
        *field(config) = Some(value.as_str().filter(|path| !path.is_empty())?.into());
        Some(())
    };
    key(name, Shape::Text, allowed, show, set)
}

fn directory(name: &str, allowed: &str, field: fn(&mut Config) -> &mut PathBuf) -> Key {
    let show = move |config: &Config| {
        let mut config = config.clone();
        Some(Value::String(field(&mut config).display().to_string()))
    };
    let set = move |config: &mut Config, value: &Value| {
        *field(config) = value.as_str().filter(|path| !path.is_empty())?.into();
        Some(())
    };
    key(name, Shape::Text, allowed, show, set)
}

fn number<T>(name: &str, allowed: &str, at_least: i64, field: fn(&mut Config) -> &mut T) -> Key
where
    T: TryFrom<i64> + Copy + 'static,
    i64: TryFrom<T>,
{
    let show = move |config: &Config| i64::try_from(*field(&mut config.clone())).ok().map(Value::Integer);
    let set = move |config: &mut Config, value: &Value| {
        *field(config) = T::try_from(value.as_integer().filter(|number| *number >= at_least)?).ok()?;
        Some(())
    };
    key(name, Shape::Integer, allowed, show, set)
}

fn choice<T: Copy + PartialEq + 'static>(
    name: &str,
    allowed: &str,
    choices: &'static [(&'static str, T)],
    show: fn(&Config) -> Option<T>,
    put: fn(&mut Config, T),
) -> Key {
    let show = move |config: &Config| {
        let chosen = show(config)?;
        choices.iter().find(|(_, choice)| *choice == chosen).map(|(name, _)| Value::String((*name).into()))
    };
    let set = move |config: &mut Config, value: &Value| {
        let wanted = value.as_str()?;
        put(config, choices.iter().find(|(name, _)| *name == wanted)?.1);
        Some(())
    };
    key(name, Shape::Text, allowed, show, set)
}

fn secret() -> Key {
    let show = |config: &Config| config.token_secret.as_ref().map(|_| Value::String("(set, not shown)".into()));
    let set = |config: &mut Config, value: &Value| {
        config.token_secret = Some(Secret(value.as_str()?.as_bytes().to_vec()));
        Some(())
    };
    key("token_secret", Shape::Text, "text of at least 32 bytes, random", show, set)
}

/// One key for each field of [`Limits`], made from its own serialisation so that none is forgotten.
fn limits() -> impl Iterator<Item = Key> {
    let table = toml::Table::try_from(Limits::default()).unwrap_or_default();
    table.into_iter().map(|(field, _)| {
        let allowed = if field.ends_with("room_bytes_max") || field.ends_with("inbox_bytes_max") {
            "a whole number of bytes, 1 or more"
        } else {
            "a whole number from 1 to 4294967295"
        };
        let name = format!("limits.{field}");
        let shown = field.clone();
        let show = move |config: &Config| toml::Table::try_from(&config.limits).ok()?.remove(&shown);
        let set = move |config: &mut Config, value: &Value| {
            value.as_integer().filter(|number| *number >= 1)?;
            let mut table = toml::Table::try_from(&config.limits).ok()?;
            table.insert(field.clone(), value.clone());
            config.limits = table.try_into().ok()?;
            Some(())
        };
        key(&name, Shape::Integer, allowed, show, set)
    })
}

/// Every key, in the order in which `waxwing config` prints them.
pub(super) fn keys() -> Vec<Key> {
    const ADDRESSES: &str = "a list of addresses with ports, such as \"127.0.0.1:4433\" or \"[::1]:4433\"";
    let mut keys = vec![
        list("listen", ADDRESSES, |c| &mut c.listen),
        list("listen_plain", ADDRESSES, |c| &mut c.listen_plain),
        list("listen_ops", ADDRESSES, |c| &mut c.listen_ops),
        key(
            "listen_plain_anywhere",
            Shape::Bool,
            "true or false",
            |c| Some(Value::Boolean(c.listen_plain_anywhere)),
            |c, value| {
                c.listen_plain_anywhere = value.as_bool()?;
                Some(())
            },
        ),
        directory("data", "a directory", |c| &mut c.data),
        directory("certs_dir", "a directory", |c| &mut c.certs_dir),
        path("cert", "a PEM file", |c| &mut c.cert),
        path("key", "a PEM file", |c| &mut c.key),
        list("public_names", "a list of names, such as \"chat.example\" or \"chat.example:8443\"", |c| &mut c.public_names),
        key(
            "public_quic",
            Shape::Text,
            "a name and a port, such as \"chat.example:4433\"",
            |c| c.public_quic.clone().map(Value::String),
            |c, value| {
                c.public_quic = Some(value.as_str()?.to_owned());
                Some(())
            },
        ),
        list("allowed_origins", "a list of origins, such as \"https://app.example\"", |c| &mut c.allowed_origins),
        list("trusted_proxies", "a list of addresses or ranges, such as \"10.0.0.0/8\"", |c| &mut c.trusted_proxies),
        choice(
            "auth",
            "\"open\" (any device may log in) or \"token\"",
            &[("open", Auth::Open), ("token", Auth::Token)],
            |c| c.auth,
            |c, auth| c.auth = Some(auth),
        ),
        secret(),
        path("token_secret_file", "a file of at least 32 bytes, random", |c| &mut c.token_secret_file),
        number("shards", "a whole number from 0 (one for each core but one, which is left to the store) to 64", 0, |c| {
            &mut c.shards
        }),
        number("recent_total_bytes_max", "a whole number of bytes", 0, |c| &mut c.recent_total_bytes_max),
        number("disk_reserve_bytes", "a whole number of bytes", 0, |c| &mut c.disk_reserve_bytes),
        number("connections_max", "a whole number, 1 or more", 1, |c| &mut c.connections_max),
        number("connections_per_address_max", "a whole number, 1 or more", 1, |c| &mut c.connections_per_address_max),
        number("stall_timeout_ms", "a whole number of milliseconds, 1000 or more", 1000, |c| &mut c.stall_timeout_ms),
        number("drain_timeout_ms", "a whole number of milliseconds", 0, |c| &mut c.drain_timeout_ms),
        choice(
            "log_format",
            "\"human\" or \"json\"",
            &[("human", LogFormat::Human), ("json", LogFormat::Json)],
            |c| Some(c.log_format),
            |c, format| c.log_format = format,
        ),
        key(
            "log_level",
            Shape::Text,
            "a filter, such as \"info\" or \"waxwing=debug,warn\"",
            |c| Some(Value::String(c.log_level.clone())),
            |c, value| {
                let text = value.as_str().filter(|text| !text.is_empty())?;
                tracing_subscriber::EnvFilter::builder().parse(text).ok()?;
                c.log_level = text.to_owned();
                Some(())
            },
        ),
    ];
    keys.extend(limits());
    keys.push(number("store.commit_wait_us", "a whole number of microseconds from 0 to 2000", 0, |c| {
        &mut c.store.commit_wait_us
    }));
    keys.push(number("store.cache_bytes", "a whole number of bytes", 0, |c| &mut c.store.cache_bytes));
    keys.push(number("store.read_cache_bytes", "a whole number of bytes", 0, |c| &mut c.store.read_cache_bytes));
    keys.push(number("store.wal_bytes_max", "a whole number of bytes", 0, |c| &mut c.store.wal_bytes_max));
    keys.push(number("store.apply_bytes", "a whole number of bytes", 0, |c| &mut c.store.apply_bytes));
    keys.extend(retention::keys());
    keys.push(number("retention.sweep_minutes", "a whole number of minutes, 1 or more", 1, |c| &mut c.retention.sweep_minutes));
    keys
}
