//! Builds the browser's client into the server binary.
//!
//! With feature `page` and the release profile, the same package is built a second time for wasm32-unknown-unknown,
//! wasm-bindgen makes the JavaScript glue, brotli compresses, and `OUT_DIR/page.rs` embeds the result together with `web/`.
//! Elsewhere it does nothing: not on wasm32, not under clippy, not in debug unless `WAXWING_PAGE=1` asks for it, and never
//! with `WAXWING_PAGE=0`. Whether the page is there is told to the code by `cfg(waxwing_page)`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(waxwing_page)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WAXWING_PAGE");
    #[cfg(feature = "page")]
    if page::is_wanted() {
        if let Err(message) = page::build() {
            println!("cargo::error={}", message.replace('\n', "\ncargo::error="));
            std::process::exit(1);
        }
        println!("cargo::rustc-cfg=waxwing_page");
    }
}

#[cfg(feature = "page")]
mod page {
    use std::{
        env,
        fmt::Write as _,
        fs,
        path::{Path, PathBuf},
        process::Command,
    };

    const WASM: &str = "wasm32-unknown-unknown";
    /// The name of the wasm module and of its glue, as the page imports them.
    const OUT_NAME: &str = "waxwing";

    type Result<T, E = String> = std::result::Result<T, E>;

    /// Whether this build should carry the page.
    pub(super) fn is_wanted() -> bool {
        let var = |name: &str| env::var(name).unwrap_or_default();
        let is_clippy = var("RUSTC_WORKSPACE_WRAPPER").contains("clippy") || env::var_os("CLIPPY_ARGS").is_some();
        if var("CARGO_CFG_TARGET_ARCH") == "wasm32" || is_clippy || env::var_os("DOCS_RS").is_some() {
            return false;
        }
        match var("WAXWING_PAGE").as_str() {
            "" => var("PROFILE") == "release",
            "0" => false,
            _ => true,
        }
    }

    /// Builds everything and writes `OUT_DIR/page.rs`.
    pub(super) fn build() -> Result<()> {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
        for watched in ["src", "web", "Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={watched}");
        }
        ensure_target()?;
        let wasm = compile(&root, &out)?;
        let glue = bind(&wasm, &out)?;
        let page = out.join("page");
        fs::create_dir_all(&page).map_err(|error| at(&page, &error))?;
        let mut assets = collect(&root.join("web"), "")?;
        assets.extend(collect(&glue, "")?);
        assets.sort();
        write_table(&assets, &page, &out.join("page.rs"))
    }

    fn at(path: &Path, error: &std::io::Error) -> String {
        format!("{}: {error}", path.display())
    }

    fn read(path: &Path) -> Result<Vec<u8>> {
        fs::read(path).map_err(|error| at(path, &error))
    }

    /// Writes only what differs, so that nothing is rebuilt for the sake of a time stamp.
    fn write(path: &Path, bytes: &[u8]) -> Result<()> {
        if fs::read(path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        fs::write(path, bytes).map_err(|error| at(path, &error))
    }

    /// FNV-1a, 64 bits: tells one build's bytes from another's; nothing of security hangs on it.
    fn fingerprint(bytes: &[u8]) -> String {
        let hash =
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        format!("{hash:016x}")
    }

    /// Makes sure that the toolchain has the wasm target's `core`.
    fn ensure_target() -> Result<()> {
        if has_target() {
            return Ok(());
        }
        let added = Command::new("rustup").args(["target", "add", WASM]).status().is_ok_and(|status| status.success());
        if added && has_target() {
            return Ok(());
        }
        Err(format!(
            "the browser's client needs the Rust target {WASM}, which is not installed and could not be added.\n\
             Install it:  rustup target add {WASM}\n\
             or build without the page:  WAXWING_PAGE=0 cargo build --release"
        ))
    }

    fn has_target() -> bool {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let Ok(found) = Command::new(rustc).args(["--print", "target-libdir", "--target", WASM]).output() else {
            return false;
        };
        let dir = String::from_utf8_lossy(&found.stdout);
        fs::read_dir(dir.trim())
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
    }

    /// Builds this package again as a wasm library; returns the module's path.
    fn compile(root: &Path, out: &Path) -> Result<PathBuf> {
        let target = out.join("nested");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in env::vars_os() {
            if is_of_the_outer_build(&name.to_string_lossy()) {
                cargo.env_remove(name);
            }
        }
        // An empty value, so that no flag of the host's configuration reaches the wasm build.
        cargo.env("CARGO_ENCODED_RUSTFLAGS", "").current_dir(root);
        cargo.args(["rustc", "--lib", "--crate-type", "cdylib", "--target", WASM, "--profile", "wasm"]);
        cargo.args(["--no-default-features", "--features", "web", "--locked", "--target-dir"]).arg(&target);
        let built = cargo.output().map_err(|error| format!("cargo could not be started for the browser's client: {error}"))?;
        if !built.status.success() {
            return Err(format!("the browser's client did not build:\n{}", String::from_utf8_lossy(&built.stderr)));
        }
        Ok(target.join(WASM).join("wasm").join("waxwing.wasm"))
    }

    /// What cargo sets for the build that runs this script, and must not reach the nested one. The job server and what the
    /// person set about their home and network stay.
    fn is_of_the_outer_build(name: &str) -> bool {
        const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_"];
        const DROPPED: [&str; 10] = [
            "RUSTFLAGS",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_LINKER",
            "RUSTDOC",
            "TARGET",
            "OPT_LEVEL",
            "PROFILE",
            "DEBUG",
            "OUT_DIR",
        ];
        let is_cargos = name.starts_with("CARGO_") || name.starts_with("DEP_");
        DROPPED.contains(&name) || (is_cargos && !KEPT.iter().any(|kept| name.starts_with(kept)))
    }

    /// Runs wasm-bindgen over the module, unless the last run was over the same bytes; returns the glue's directory.
    fn bind(wasm: &Path, out: &Path) -> Result<PathBuf> {
        let glue = out.join("glue");
        let stamp = out.join("glue.stamp");
        let hash = fingerprint(&read(wasm)?);
        if fs::read_to_string(&stamp).is_ok_and(|old| old == hash) {
            return Ok(glue);
        }
        // Removed first: a run that fails half-way must not look finished.
        let _ = fs::remove_file(&stamp);
        let _ = fs::remove_dir_all(&glue);
        let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
        bindgen.input_path(wasm).out_name(OUT_NAME).typescript(false).remove_name_section(true).remove_producers_section(true);
        bindgen.web(true).and_then(|bindgen| bindgen.generate(&glue)).map_err(|error| format!("wasm-bindgen: {error:#}"))?;
        fs::write(&stamp, hash).map_err(|error| at(&stamp, &error))?;
        Ok(glue)
    }

    /// Every file below `dir`, as (URL path, file).
    fn collect(dir: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(|error| at(dir, &error))?.flatten() {
            let path = entry.path();
            let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
            if path.is_dir() {
                found.extend(collect(&path, &name)?);
            } else if content_type(&name).is_some() {
                found.push((name, path));
            }
        }
        Ok(found)
    }

    fn content_type(name: &str) -> Option<&'static str> {
        Some(match Path::new(name).extension()?.to_str()? {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "png" => "image/png",
            "webmanifest" => "application/manifest+json",
            "wasm" => "application/wasm",
            _ => return None,
        })
    }

    /// Compresses the assets and writes the Rust table that embeds them.
    fn write_table(assets: &[(String, PathBuf)], dir: &Path, table: &Path) -> Result<()> {
        let mut text = String::from("/// The page's files, by URL path.\npub static ASSETS: &[Asset] = &[\n");
        for (url, file) in assets {
            let bytes = read(file)?;
            let etag = fingerprint(&bytes);
            let compressed = dir.join(format!("{etag}.br"));
            if !compressed.exists() {
                write(&compressed, &compress(&bytes)?)?;
            }
            let kind = content_type(&file.to_string_lossy()).ok_or("a file without a content type was collected")?;
            let _ = writeln!(
                text,
                "    Asset {{\n        path: {url:?},\n        content_type: {kind:?},\n        etag: {:?},\n        \
                 brotli: Some(include_bytes!({compressed:?})),\n        raw: Some(include_bytes!({file:?})),\n    }},",
                format!("\"{etag}\""),
            );
        }
        text.push_str("];\n");
        write(table, text.as_bytes())
    }

    fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
        let mut compressed = Vec::new();
        let params = brotli::enc::BrotliEncoderParams { quality: 11, lgwin: 22, ..Default::default() };
        brotli::BrotliCompress(&mut &*bytes, &mut compressed, &params).map_err(|error| format!("brotli: {error}"))?;
        Ok(compressed)
    }
}
