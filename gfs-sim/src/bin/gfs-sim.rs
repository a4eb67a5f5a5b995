//! Long runs: `cargo run --release -p gfs-sim --bin gfs-sim -- --seeds N --minutes M [--first S]`.
//!
//! Prints how many seeds a second it does, and every seed that fails, which it also appends to `gfs-sim/seeds/failed.txt`: those are
//! run by the tests from then on. Ends with 1 when any failed. `--show S` runs that seed alone and prints all that happens in it.

use gfs_sim::{Options, run};
use std::io::Write;
use std::time::{Duration, Instant};

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/failed.txt");
const USAGE: &str = "usage: gfs-sim [--seeds N] [--minutes M] [--first S] [--show S]";

struct Arguments {
    seeds: u64,
    limit: Duration,
    first: u64,
    show: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { seeds: u64::MAX, limit: Duration::from_secs(600), first: 0, show: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let number = words.next().and_then(|text| text.parse::<u64>().ok());
        let number = number.ok_or_else(|| format!("{word} wants a number; {USAGE}"))?;
        match word.as_str() {
            "--seeds" => parsed.seeds = number,
            "--minutes" => parsed.limit = Duration::from_secs(60 * number),
            "--first" => parsed.first = number,
            "--show" => (parsed.first, parsed.seeds, parsed.show) = (number, 1, true),
            _ => return Err(format!("{word} is not known; {USAGE}")),
        }
    }
    Ok(parsed)
}

fn note(seed: u64, found: &[String]) -> std::io::Result<()> {
    let first = found.first().map_or("", |line| line.lines().next().unwrap_or_default());
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(FAILED)?;
    writeln!(file, "{seed} {first}")
}

fn main() -> std::process::ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}");
            return 2.into();
        }
    };
    let start = Instant::now();
    let (mut done, mut failed, mut told) = (0_u64, 0_u64, Duration::ZERO);
    let rate = |done: u64| done as f64 / start.elapsed().as_secs_f64();
    while done < arguments.seeds && start.elapsed() < arguments.limit {
        let seed = arguments.first + done;
        let options = Options { show: arguments.show, ..Options::of_seed(seed) };
        let found =
            std::panic::catch_unwind(|| run(seed, options)).unwrap_or_else(|_| vec!["a panic, see above".to_string()]);
        done += 1;
        if !found.is_empty() {
            failed += 1;
            println!("seed {seed} failed:\n  {}", found.join("\n  "));
            if !arguments.show
                && let Err(error) = note(seed, &found)
            {
                eprintln!("{FAILED}: {error}");
            }
        }
        if start.elapsed() - told > Duration::from_secs(20) {
            told = start.elapsed();
            println!("{done} seeds, {failed} failed, {:.0} seeds/s", rate(done));
        }
    }
    let seconds = start.elapsed().as_secs();
    println!("{done} seeds in {seconds} s, {failed} failed, {:.0} seeds/s", rate(done));
    u8::from(failed > 0).into()
}
