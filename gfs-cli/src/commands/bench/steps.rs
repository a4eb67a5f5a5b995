//! The steps of each group, as a program would make them.

use super::measure::{Count, PIECE, Unit, step};
use super::report::Step;
use super::{Group, Setting, of_job};
use anyhow::{Context, Result};
use gfs_core::splitmix::SplitMix64;
use rustix::fs::{Advice, OFlags, fadvise};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Length of a random read or write, and of a small file.
const SMALL: usize = 4096;
/// Most random reads or writes of one job.
const MOST: u64 = 100_000;

/// Runs the steps of a group, and hands each over as it is done.
pub(super) fn run(group: Group, setting: &Setting, done: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
    for job in 0..setting.asked.jobs {
        let place = of_job(&setting.place, job);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    match group {
        Group::Seq => sequential(setting, done),
        Group::Rand => random(setting, done),
        Group::Names => names(setting, done),
        Group::Small => small(setting, done),
    }
}

fn large(setting: &Setting, job: u16) -> PathBuf {
    of_job(&setting.place, job).join("large")
}

/// Writes a large file and syncs it.
fn fill(setting: &Setting, job: u16, count: &mut Count) -> io::Result<()> {
    let mut file = File::create(large(setting, job))?;
    let mut piece = vec![0u8; PIECE];
    let mut numbers = SplitMix64::new(job.into());
    // Nothing that a file system could make smaller.
    piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&numbers.draw().to_le_bytes()));
    for number in 0..setting.asked.size / PIECE as u64 {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        if !count.call(PIECE as u64, || file.write_all(&piece))? {
            break;
        }
    }
    count.call(0, || file.sync_all()).map(drop)
}

fn read_through(path: &Path, count: &mut Count) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0u8; PIECE];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let length = left.min(PIECE as u64);
        if !count.call(length, || file.read_exact(&mut piece[..length as usize]))? {
            break;
        }
        left -= length;
    }
    Ok(())
}

fn sequential(setting: &Setting, done: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
    done(step("write + fsync", Unit::Bytes, setting, |job, count| fill(setting, job, count))?)?;
    for job in 0..setting.asked.jobs {
        forget(&large(setting, job));
    }
    done(step("read", Unit::Bytes, setting, |job, count| read_through(&large(setting, job), count))?)?;
    done(step("read again", Unit::Bytes, setting, |job, count| read_through(&large(setting, job), count))?)
}

/// Has the page cache of this machine drop a file.
fn forget(path: &Path) {
    // What it does not drop is read faster; that is all.
    if let Ok(file) = File::open(path) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
}

/// A buffer that is aligned as reads past the page cache ask for.
#[repr(align(4096))]
struct Block([u8; SMALL]);

fn random(setting: &Setting, done: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
    let missing: Vec<u16> = (0..setting.asked.jobs).filter(|job| !large(setting, *job).exists()).collect();
    if !missing.is_empty() {
        step("fill", Unit::Bytes, setting, |job, count| fill(setting, job, count))?;
    }
    let offset = |numbers: &mut SplitMix64, blocks: u64| numbers.below(blocks.max(1)) * SMALL as u64;
    done(step("random read 4K", Unit::Operations, setting, |job, count| {
        let file = open_past_cache(&large(setting, job))?;
        let (mut block, mut numbers) = (Block([0; SMALL]), SplitMix64::new(job.into()));
        let blocks = file.metadata()?.len() / SMALL as u64;
        repeat(MOST, count, |_| file.read_exact_at(&mut block.0, offset(&mut numbers, blocks)))
    })?)?;
    done(step("random write 4K", Unit::Operations, setting, |job, count| {
        let file = OpenOptions::new().write(true).open(large(setting, job))?;
        let (block, mut numbers) = ([7; SMALL], SplitMix64::new(job.into()));
        let blocks = file.metadata()?.len() / SMALL as u64;
        repeat(MOST, count, |_| file.write_all_at(&block, offset(&mut numbers, blocks)))?;
        count.call(0, || file.sync_all()).map(drop)
    })?)?;
    done(step("write 4K + fsync each", Unit::Operations, setting, |job, count| {
        let file = OpenOptions::new().write(true).open(large(setting, job))?;
        let (block, mut numbers) = ([8; SMALL], SplitMix64::new(job.into()));
        let blocks = file.metadata()?.len() / SMALL as u64;
        repeat(MOST, count, |_| {
            file.write_all_at(&block, offset(&mut numbers, blocks))?;
            file.sync_all()
        })
    })?)?;
    done(step("append 1K", Unit::Operations, setting, |job, count| {
        let path = of_job(&setting.place, job).join("log");
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        repeat(u64::from(setting.asked.files) * 5, count, |_| file.write_all(&[9; 1024]))
    })?)
}

/// Opens a file for reads past the page cache, where the file system can.
fn open_past_cache(path: &Path) -> io::Result<File> {
    let direct = OFlags::DIRECT.bits() as i32;
    let opened = OpenOptions::new().read(true).custom_flags(direct).open(path);
    opened.or_else(|error| if error.kind() == io::ErrorKind::InvalidInput { File::open(path) } else { Err(error) })
}

/// Makes a call up to `most` times, while there is time.
fn repeat(most: u64, count: &mut Count, mut call: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
    for number in 0..most {
        if !count.call(1, || call(number))? {
            break;
        }
    }
    Ok(())
}

/// Makes a call for every name of a kind that the steps before have made.
fn each(
    setting: &Setting,
    kind: &str,
    job: u16,
    count: &mut Count,
    call: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let place = of_job(&setting.place, job);
    for number in 0..setting.asked.files {
        let path = place.join(format!("{kind}{number:07}"));
        // A step before may have run out of time.
        if !count.call(1, || call(&path).or_else(absent))? {
            break;
        }
    }
    Ok(())
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn names(setting: &Setting, done: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
    type Call = fn(&Path) -> io::Result<()>;
    let renamed =
        |path: &Path| path.with_file_name(path.file_name().unwrap_or_default().to_string_lossy().replace('f', "r"));
    let steps: [(&str, &str, Call); 4] = [
        ("mkdir", "d", |path| fs::create_dir(path)),
        ("create", "f", |path| File::create_new(path).map(drop)),
        ("stat", "f", |path| fs::metadata(path).map(drop)),
        ("open + close", "f", |path| File::open(path).map(drop)),
    ];
    for (name, kind, call) in steps {
        done(step(name, Unit::Operations, setting, |job, count| each(setting, kind, job, count, call))?)?;
    }
    done(step("rename", Unit::Operations, setting, |job, count| {
        each(setting, "f", job, count, |path| fs::rename(path, renamed(path)))
    })?)?;
    done(step("unlink", Unit::Operations, setting, |job, count| {
        each(setting, "r", job, count, |path| fs::remove_file(path))
    })?)?;
    done(step("rmdir", Unit::Operations, setting, |job, count| {
        each(setting, "d", job, count, |path| fs::remove_dir(path))
    })?)
}

fn small(setting: &Setting, done: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
    done(step("write small files", Unit::Operations, setting, |job, count| {
        each(setting, "s", job, count, |path| File::create_new(path)?.write_all(&[5; SMALL]))
    })?)?;
    for job in 0..setting.asked.jobs {
        let place = of_job(&setting.place, job);
        (0..setting.asked.files).for_each(|number| forget(&place.join(format!("s{number:07}"))));
    }
    done(step("read small files", Unit::Operations, setting, |job, count| {
        each(setting, "s", job, count, |path| fs::read(path).map(drop))
    })?)?;
    done(step("remove small files", Unit::Operations, setting, |job, count| {
        each(setting, "s", job, count, |path| fs::remove_file(path))
    })?)
}
