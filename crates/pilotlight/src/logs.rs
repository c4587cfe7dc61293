//! `pilotlight logs`: what a microVM's application wrote, or how a build went. Reads plain files; needs no server.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use api::{host::Layout, ids::MicrovmId};

use crate::{cli::LogsArguments, config::Config};

/// Prints the log asked for, the older part first.
pub fn print(arguments: &LogsArguments) -> anyhow::Result<()> {
    let config = Config::load_data(&arguments.data)?;
    let path = if arguments.build {
        build_log(&config, &arguments.name, arguments.console)?
    } else {
        let microvm_id: MicrovmId =
            arguments.name.parse().context("give a microVM's id, or --build and an image's name")?;
        let layout = Layout { data: config.data_dir.clone() };
        if arguments.console { layout.console_log(&microvm_id) } else { layout.app_log(&microvm_id) }
    };
    let mut older = path.clone().into_os_string();
    older.push(".1");
    let mut out = io::stdout().lock();
    if let Ok(mut older) = File::open(older) {
        io::copy(&mut older, &mut out)?;
    }
    let mut newest = File::open(&path).with_context(|| format!("there is no log for {}", arguments.name))?;
    io::copy(&mut newest, &mut out)?;
    out.flush()?;
    Ok(())
}

/// The log of the newest build of an image. Builds are kept by the image's internal id, which control knows; each
/// directory carries the image's name beside its logs.
fn build_log(config: &Config, name: &str, console: bool) -> anyhow::Result<PathBuf> {
    let name = name.rsplit(':').next().unwrap_or(name);
    let builds = config.data_dir.join("logs/builds");
    let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
    for image in std::fs::read_dir(&builds).with_context(|| format!("cannot read {}", builds.display()))? {
        let image = image?.path();
        if std::fs::read_to_string(image.join("name")).is_ok_and(|found| found == name) {
            newest = newest.max(newest_log_in(&image, console)?);
        }
    }
    match newest {
        Some((_, path)) => Ok(path),
        None => bail!("there is no build of an image named {name}"),
    }
}

fn newest_log_in(image: &Path, console: bool) -> anyhow::Result<Option<(std::time::SystemTime, PathBuf)>> {
    let mut newest = None;
    for log in std::fs::read_dir(image)? {
        let path = log?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fits = if console { file_name.ends_with(".console.log") } else { !file_name.contains(".console.") };
        if fits && file_name.ends_with(".log") {
            newest = newest.max(Some((path.metadata()?.modified()?, path)));
        }
    }
    Ok(newest)
}
