//! The arrows between the crate's parts, and what the server is built of.
//!
//! That the core builds with no feature at all, for this machine and for wasm32, is checked by `test.sh`, which compiles it so.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and says what it does"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const LINES_MAX: usize = 800;

/// Each part and the parts that it may name. One that is not listed may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("seal", &["core"]),
    ("group", &["core", "seal"]),
    ("client", &["core", "seal", "group", "transport"]),
    ("web", &["core", "client"]),
    ("transport", &["core"]),
    ("config", &["core"]),
    ("memory", &[]),
    ("engine", &["core", "memory"]),
    ("metrics", &["core", "transport"]),
    ("router", &["core", "engine"]),
    ("server", &["core", "transport", "config", "engine", "memory", "metrics", "router"]),
    ("cli", &["core", "seal", "client", "transport", "config", "engine", "metrics", "router", "server"]),
];

/// Crates of which the server may not even link one: whoever can open an envelope needs some of them.
const SEALING_CRATES: &[&str] = &["hpke", "argon2", "aes-gcm", "x-wing", "ml-kem", "x25519-dalek", "hkdf", "openmls"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file: the path of its module (`["engine", "redb", "read"]`) and its text.
fn modules() -> Vec<(Vec<String>, String)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let module = |file: PathBuf| {
        let path = file.strip_prefix(root().join("src")).unwrap().with_extension("");
        let mut names: Vec<_> = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if names.last().is_some_and(|name| name == "mod") {
            names.pop();
        }
        (names, fs::read_to_string(file).unwrap())
    };
    files.into_iter().map(module).collect()
}

/// The source without comments and without what literals contain. Lines stay lines.
fn code(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped_len(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let lines = rest[..skipped].matches('\n').count();
            code.push(' ');
            code.extend(std::iter::repeat_n('\n', lines));
            rest = &rest[skipped..];
        }
    }
    code
}

/// The length of the comment or literal that `rest` begins with; 0 when it begins with code.
fn skipped_len(rest: &str, before: Option<char>) -> usize {
    let within_name = before.is_some_and(is_name);
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        block_comment_len(rest)
    } else if rest.starts_with('"') {
        quoted_len(rest, '"')
    } else if rest.starts_with('r') && (!within_name || before == Some('b')) {
        raw_string_len(rest)
    } else if rest.starts_with('\'') {
        // 'a is a lifetime, 'a' and '\n' are characters.
        let closed = rest.char_indices().nth(2).is_some_and(|(_, third)| third == '\'');
        if closed || rest.starts_with("'\\") { quoted_len(rest, '\'') } else { 0 }
    } else {
        0
    }
}

fn block_comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        let step = match () {
            () if tail.starts_with(b"/*") => {
                depth += 1;
                2
            }
            () if tail.starts_with(b"*/") => {
                depth -= 1;
                2
            }
            () => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw_string_len(rest: &str) -> usize {
    let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = hashes + 2;
    rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
}

const fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The parts of the crate that code in `module` names, with their lines: by `crate::…`, or by as many `super::` as reach it.
fn named(module: &[String], code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let mut inline_depth = 0;
    for (at, word) in words(code) {
        let after = code[at + word.len()..].trim_start();
        match word {
            "mod" if after.trim_start_matches(is_name).trim_start().starts_with('{') => inline_depth = 1,
            "crate" | "super" => {
                let Some(tail) = after.strip_prefix("::") else { continue };
                let Some(tail) = tail_at_root(word, tail, module.len() + inline_depth) else { continue };
                let line = code[..at].matches('\n').count() + 1;
                named.extend(first_names(tail).into_iter().map(|name| (line, name)));
            }
            _ => {}
        }
    }
    named
}

/// Names and keywords, and where they are. A `super` that follows another is part of its path.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    code.char_indices().filter_map(move |(at, c)| {
        if at < end || !is_name(c) {
            return None;
        }
        let word = &code[at..at + code[at..].find(|c| !is_name(c)).unwrap_or(code.len() - at)];
        end = at + word.len();
        let continued = word == "super" && code[..at].trim_end().ends_with("super::");
        (!continued).then_some((at, word))
    })
}

/// What follows `crate::`, or the `super::`s, if the path begins at the crate's root.
fn tail_at_root<'a>(word: &str, mut tail: &'a str, depth: usize) -> Option<&'a str> {
    let mut supers = 1;
    while let Some(next) = tail.trim_start().strip_prefix("super::") {
        supers += 1;
        tail = next;
    }
    (word == "crate" || supers >= depth).then_some(tail)
}

/// The first names of a path's end: of `a::b` it is a, of `{a, b::{c, d}}` they are a and b.
fn first_names(tail: &str) -> Vec<String> {
    let name = |tail: &str| tail.trim_start().chars().take_while(|c| is_name(*c)).collect::<String>();
    let Some(list) = tail.trim_start().strip_prefix('{') else { return vec![name(tail)] };
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut begins = true;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && !c.is_whitespace() => {
                names.push(name(&list[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn parts_name_only_the_parts_below_them() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, source) in modules() {
        let Some(part) = module.first().filter(|part| !["lib", "main"].contains(&part.as_str())) else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == part) else {
            wrong.push(format!("src/{part} is not in the list of parts"));
            continue;
        };
        for (line, name) in named(&module, &code(&source)) {
            seen.insert((part.clone(), name.clone()));
            if name != *part && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}, line {line}: {part} may not name `{name}`", module.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let arrow = |from: &str, to: &str| seen.contains(&(from.to_owned(), to.to_owned()));
    assert!(arrow("client", "seal") && arrow("server", "router") && arrow("router", "engine"), "the scan finds what is there");
}

#[test]
fn the_scan_sees_paths_and_only_paths() {
    let source = r##"
        use crate::{core::{id::{A, B}, log}, seal as wax, transport};
        //! [`crate::comment`]
        /* crate::block /* crate::nested */ crate::still */
        fn f<'a>(_: &'a str) -> char { let _ = "crate::text \" crate::text"; let _ = r#"crate::"raw"#; (b'"', '"').1 }
        pub(in crate::here) fn g() { crate :: client::x(); super::sibling(); super::super::router::y(); self::super::z(); }
        mod tests { use super::super::own; use super::super::super::engine; }
    "##;
    let module = ["here".to_owned(), "file".to_owned()];
    let names: Vec<_> = named(&module, &code(source)).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["core", "seal", "transport", "here", "client", "router", "engine"]);
}

/// Without the feature `seal` the module does not exist; without its crates nobody can write it again by accident.
#[test]
fn the_server_is_built_without_what_opens_envelopes() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--no-default-features", "--features", "server"])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p} {f}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("redb") && crates.contains("waxwing"), "the tree is the server's:\n{tree}");
    let found: Vec<_> = SEALING_CRATES.iter().filter(|name| crates.contains(**name)).collect();
    assert!(found.is_empty(), "the server links {found:?}");
    let features = tree.lines().find(|line| line.starts_with("waxwing ")).and_then(|line| line.split(' ').next_back()).unwrap();
    assert!(!features.split(',').any(|feature| ["seal", "client"].contains(&feature)), "the server enables {features}");
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = modules()
        .into_iter()
        .map(|(module, source)| (module.join("::"), source.lines().count()))
        .filter(|(_, lines)| *lines >= LINES_MAX)
        .collect();
    assert!(long.is_empty(), "files of {LINES_MAX} lines and more: {long:?}");
}

#[test]
fn the_security_page_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let is_name = |word: &&str| word.contains('_') && word.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
    let names: BTreeSet<_> = page.split('`').skip(1).step_by(2).filter(is_name).collect();
    let mut files = Vec::new();
    for part in ["src", "tests"] {
        sources(&root().join(part), &mut files);
    }
    let code: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let missing: Vec<_> = names.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(names.len() >= 40 && missing.is_empty(), "{missing:?} of {}", names.len());
}
