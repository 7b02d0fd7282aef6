//! `document`: puts the tables and plots of the latest runs into a document.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

/// Arguments of `document`.
#[derive(Debug, Clone, Args)]
pub struct DocumentArgs {
    /// Where the results are.
    #[arg(long, value_name = "DIR", default_value = "target/results")]
    out: PathBuf,
    /// The document. What is between `<!-- measured: NAME -->` and `<!-- end -->` is replaced by the table NAME.
    #[arg(long, value_name = "FILE", default_value = "../docs/performance.md")]
    document: PathBuf,
    /// Where plots are copied to.
    #[arg(long, value_name = "DIR", default_value = "../docs/images")]
    images: PathBuf,
}

const BEGIN: &str = "<!-- measured: ";
const END: &str = "<!-- end -->";

pub fn run(args: &DocumentArgs) -> anyhow::Result<()> {
    let text = fs::read_to_string(&args.document).with_context(|| format!("cannot read {}", args.document.display()))?;
    let mut rest = text.as_str();
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, after) = after.split_once(" -->").context("a marker without an end")?;
        let Some((old, after)) = after.split_once(END) else { bail!("{name}: no {END}") };
        let table = fs::read_to_string(args.out.join(format!("{name}.md")));
        if table.is_err() {
            eprintln!("{name}: not measured; left as it was");
        }
        let table = table.map_or_else(|_| old.to_owned(), |table| format!("\n{table}"));
        out += &format!("{before}{BEGIN}{name} -->{table}{END}");
        rest = after;
    }
    fs::write(&args.document, out + rest)?;
    fs::create_dir_all(&args.images)?;
    for entry in fs::read_dir(&args.out)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|extension| extension == "svg")) {
            fs::copy(&path, args.images.join(name))?;
        }
    }
    Ok(())
}
