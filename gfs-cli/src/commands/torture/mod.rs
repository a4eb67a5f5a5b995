//! `gfs torture`: writes, reads and names on two mounts while daemons are killed, stopped and cut off, every answer checked.
//!
//! It looks at a cluster from outside, as programs do: through mounts, and by the commands of this program.

mod blocks;
mod faults;
mod links;
mod load;

use crate::{human, mounts, output};
use anyhow::{Context, Result};
use faults::{Cluster, Fault};
use gfs_core::splitmix::SplitMix64;
use load::{CALM, Load, Record, Work};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `gfs torture`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How long
    #[arg(long, default_value = "2", value_parser = parse_minutes, value_name = "MINUTES")]
    minutes: Duration,
    /// Which faults and which accesses; a run tells its own
    #[arg(long)]
    seed: Option<u64>,
    /// Use the cluster that is mounted here, and do it no harm; give it twice for two mounts
    #[arg(long = "on", value_name = "MOUNT")]
    on: Vec<PathBuf>,
    /// Chunk servers of the cluster that is brought up
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(3..=20))]
    chunkservers: u16,
    /// Where it is brought up [default: a new directory in /var/tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave its data and logs there
    #[arg(long)]
    keep: bool,
}

/// Runs, and tells what came of it. Exit code 1 when anything was wrong.
pub fn run(args: &Args) -> Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now_nanos());
    output::line(format_args!("seed {seed}, {} s", args.minutes.as_secs()))?;
    let end = Instant::now() + args.minutes;
    let record = Arc::new(Record::default());
    record.during(CALM);
    let sound = if args.on.is_empty() {
        on_a_new_cluster(args, seed, end, &record)?
    } else {
        on_mounts(args, seed, end, &record)?
    };
    tell(&record)?;
    let (count, first) = record.problems();
    for problem in &first {
        output::line(format_args!("WRONG {problem}"))?;
    }
    if count == 0 && sound {
        output::line(format_args!("clean: seed {seed}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("NOT CLEAN: {}, seed {seed}", human::count(count, "problem")))?;
    Ok(ExitCode::FAILURE)
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes".to_owned())?;
    if !(0.0..=100_000.0).contains(&minutes) {
        return Err("between 0 and 100000".into());
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

fn now_nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs() << 20
}

/// On mounts of somebody's cluster: only the load. Faults are theirs to make.
fn on_mounts(args: &Args, seed: u64, end: Instant, record: &Arc<Record>) -> Result<bool> {
    for mount in &args.on {
        if !mounts::is_mounted(mount) {
            anyhow::bail!("{} is not a gfs mount", mount.display());
        }
    }
    let load = Load::start(&args.on, seed, record.clone()).context("cannot make the files of the test")?;
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    let right = load.finish();
    output::line(format_args!("{} read and right at the end", human::count(right, "block")))?;
    Ok(true)
}

fn on_a_new_cluster(args: &Args, seed: u64, end: Instant, record: &Arc<Record>) -> Result<bool> {
    let dir = args.dir.clone().unwrap_or_else(|| format!("/var/tmp/gfs-torture-{}", std::process::id()).into());
    let cluster = Cluster::start(&dir, args.chunkservers, args.keep)?;
    let load = Load::start(cluster.mounts(), seed, record.clone()).context("cannot make the files of the test")?;
    let mut random = SplitMix64::new(seed);
    let (mut faults, mut longest, mut failure) = (0u64, Duration::ZERO, None);
    while Instant::now() < end && failure.is_none() {
        let fault = Fault::next(&mut random, args.chunkservers);
        record.during(CALM);
        std::thread::sleep(fault.calm.min(end.saturating_duration_since(Instant::now())));
        record.during(fault.class());
        match cluster.suffer(&fault) {
            Ok(healed) => longest = longest.max(healed),
            Err(error) => failure = Some(error),
        }
        faults += 1;
    }
    let right = load.finish();
    let checked = if failure.is_none() { cluster.check().err() } else { None };
    output::line(format_args!(
        "{}, all copies back after {:.1} s at most, {} read and right at the end",
        human::count(faults, "fault"),
        longest.as_secs_f64(),
        human::count(right, "block")
    ))?;
    for problem in failure.iter().chain(&checked) {
        output::line(format_args!("WRONG {problem:#}"))?;
    }
    Ok(failure.is_none() && checked.is_none())
}

fn tell(record: &Record) -> Result<()> {
    let word = |work| match work {
        Work::Read => "read",
        Work::Write => "write",
        Work::Sync => "fsync",
        Work::Names => "names",
    };
    let mut rows = vec![["DURING", "CALL", "CALLS", "LONGEST"].map(String::from).to_vec()];
    rows.extend(record.calls().into_iter().map(|((during, work), calls)| {
        let longest = format!("{:.2} s", calls.longest.as_secs_f64());
        vec![during.to_owned(), word(work).to_owned(), calls.count.to_string(), longest]
    }));
    output::table(&rows, &[2, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_may_be_parts_of_one() {
        assert_eq!(parse_minutes("0.5"), Ok(Duration::from_secs(30)));
        assert!(["-1", "x", "NaN", "inf"].into_iter().all(|text| parse_minutes(text).is_err()));
    }
}
