//! A store whose power can be cut: it remembers what the disk may hold and what a reader may see afterwards.
//!
//! Whatever is written counts as unsynced until the store syncs the file, however it was written: past the page cache or
//! through it. Until then each sector holds any of the contents that it has had since the last sync, independently of all
//! others. Journal records hold up to where the journal is durable; sectors behind that may be there or not.

use super::model::{Model, Step};
use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const SECTOR: usize = 512;

/// Decides which of the contents that the sector at an offset has had is kept: 0 is the synced one, the last the newest.
pub(super) type Fate<'a> = dyn FnMut(u64, usize) -> usize + 'a;

/// What is committed at some sequence.
struct Committed {
    sequence: Sequence,
    length: u64,
    data: Vec<u8>,
}

pub(super) struct Outage {
    dir: tempfile::TempDir,
    /// A copy of the directory as of the last checkpoint.
    image: tempfile::TempDir,
    overlay_bytes: u64,
    /// `None` only while it is opened again.
    store: Option<Store>,
    chunk: ChunkHandle,
    pub model: Model,
    /// What was committed since the last sync, and at it.
    history: Vec<Committed>,
    /// The chunk file as it was synced, and after each step since.
    files: Vec<Vec<u8>>,
    /// The newest operation at the last checkpoint.
    operation: u64,
}

impl Outage {
    pub fn new(overlay_bytes: u64) -> Self {
        let dir = scratch();
        let store = open_with(StoreOptions { overlay_bytes, ..options(dir.path()) });
        let chunk = create(&store, 1);
        let (image, model, store) = (scratch(), Model::new(), Some(store));
        let (history, files) = (Vec::new(), Vec::new());
        let mut new = Self { dir, image, overlay_bytes, store, chunk, model, history, files, operation: 0 };
        new.run(&Step::Checkpoint);
        new
    }

    pub fn run(&mut self, step: &Step) {
        match step {
            Step::Commit { count } => (0..*count).for_each(|_| self.step(&Step::Commit { count: 1 })),
            step => self.step(step),
        }
        match step {
            Step::Checkpoint => {
                self.image = scratch();
                copy_tree(self.dir.path(), self.image.path());
                self.operation = self.model.operation;
                self.file_is_synced();
                self.history.drain(..self.history.len() - 1);
            }
            Step::Sync => drop(self.history.drain(..self.history.len() - 1)),
            _ => {}
        }
    }

    fn step(&mut self, step: &Step) {
        if matches!(step, Step::Kill) {
            self.store = None;
            let overlay_bytes = self.overlay_bytes;
            self.store = Some(open_with(StoreOptions { overlay_bytes, ..options(self.dir.path()) }));
        }
        let store = self.store.as_ref().unwrap();
        let syncs_file = matches!(step, Step::Sync) && {
            let chunk = store.chunks.read()[&self.chunk].clone();
            let state = chunk.state.read();
            state.landed_dirty && state.flushed < state.committed
        };
        self.model.run(store, self.chunk, step);
        let Model { committed: sequence, length, ref data, .. } = self.model;
        if self.history.last().is_none_or(|last| last.sequence != sequence) {
            self.history.push(Committed { sequence, length, data: data.clone() });
        }
        if syncs_file {
            self.file_is_synced();
        } else {
            self.files.push(std::fs::read(chunk_file(self.dir.path(), self.chunk)).unwrap());
        }
    }

    fn file_is_synced(&mut self) {
        self.files = vec![std::fs::read(chunk_file(self.dir.path(), self.chunk)).unwrap()];
    }

    /// Cuts the power and starts the store again; the error says which promise it has broken.
    pub fn cut(self, fate: &mut Fate<'_>) -> Result<Store, String> {
        let durable = self.store.unwrap().disks.read()[0].journal.durable().0;
        let (image, chunk) = (self.image.path(), self.chunk);
        mix(&chunk_file(image, chunk), &self.files, 0, fate);
        cut_journal(image, self.dir.path(), durable, fate);
        let store = after_power_cut(image);
        let state = store.state(chunk).unwrap();
        let flushed = &self.history[0];
        if state.committed < flushed.sequence || state.flushed < flushed.sequence {
            return Err(format!("{:?} was flushed, {:?} is left", flushed.sequence, (state.committed, state.flushed)));
        }
        // Preparing is what needs an intent; the checkpoint has left one only for what was prepared then.
        if !state.suspect && self.model.operation != self.operation {
            return Err("it is not suspect".into());
        }
        let left: Vec<&Committed> = self.history.iter().filter(|then| then.sequence <= state.committed).collect();
        if left.last().is_none_or(|last| (last.sequence, last.length) != (state.committed, state.length)) {
            return Err(format!("{:?} with length {}", state.committed, state.length));
        }
        for n in 0..CHUNK / BLOCK {
            let block = store.read(chunk, n * BLOCK, BLOCK).map_err(|e| e.to_string())?;
            check_block(&left, n as usize, &block.data)?;
        }
        check_unstored(&store, chunk)?;
        for write in &state.prepared {
            store.prepared_data(chunk, write.sequence()).map_err(|e| e.to_string())?;
        }
        Ok(store)
    }
}

/// A block holds what it held at one of these times, and nothing from before it was last zeros.
fn check_block(left: &[&Committed], n: usize, found: &[u8]) -> Result<(), String> {
    let at = n * BLOCK as usize;
    for then in left.iter().rev() {
        let known = &then.data[at..at + BLOCK as usize];
        if known == found {
            return Ok(());
        }
        if known.iter().all(|byte| *byte == 0) {
            break;
        }
    }
    let sectors: Vec<String> = found.chunks(SECTOR).map(|s| format!("{:?}", &s[..4])).collect();
    Err(format!("block {n} holds what it never held, or no longer: {}", sectors.join(" ")))
}

/// Where nothing is stored the file holds zeros: the next torn write is merged with them.
fn check_unstored(store: &Store, chunk: ChunkHandle) -> Result<(), String> {
    let chunk = store.chunks.read()[&chunk].clone();
    let file = chunk.file().unwrap();
    let entries = chunk.read_entries(&file, 0, (CHUNK / BLOCK) as u32).unwrap();
    let bytes = file.read(0, CHUNK as usize).unwrap();
    for (n, (entry, bytes)) in entries.iter().zip(bytes.chunks(BLOCK as usize)).enumerate() {
        if entry.is_some_and(|info| !info.is_stored()) && bytes.iter().any(|byte| *byte != 0) {
            return Err(format!("block {n} is not stored and holds something"));
        }
    }
    Ok(())
}

pub(super) fn after_power_cut(dir: &Path) -> Store {
    Store::open(StoreOptions { boot_id: Some("second boot".into()), ..options(dir) }).unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Puts sectors of some of the contents that a file has had into it, as `fate` says; up to `safe` those of the last.
fn mix(path: &Path, contents: &[Vec<u8>], safe: u64, fate: &mut Fate<'_>) {
    std::fs::write(path, &contents[0]).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let last = &contents[contents.len() - 1];
    for at in (0..last.len()).step_by(SECTOR) {
        let end = (at + SECTOR).min(last.len());
        let sector = |content: &Vec<u8>| {
            let mut bytes = content[at.min(content.len())..end.min(content.len())].to_vec();
            bytes.resize(end - at, 0);
            bytes
        };
        let mut seen: Vec<Vec<u8>> = contents.iter().map(sector).collect();
        seen.dedup();
        if seen.len() > 1 {
            let safe_part = (safe.saturating_sub(at as u64) as usize).min(end - at);
            let mut kept = seen[fate(at as u64, seen.len())].clone();
            kept[..safe_part].copy_from_slice(&last[at..at + safe_part]);
            file.write_all_at(&kept, at as u64).unwrap();
        }
    }
}

/// Makes the journal of `image`, a copy from the last checkpoint, into what a power cut would leave of the one of `live`.
fn cut_journal(image: &Path, live: &Path, durable: u64, fate: &mut Fate<'_>) {
    for entry in std::fs::read_dir(live.join("journal")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let old = image.join("journal").join(&name);
        let Some(base) = name.strip_suffix(".log").map(|base| u64::from_str_radix(base, 16).unwrap()) else { continue };
        let newer = std::fs::read(&path).unwrap();
        if !old.exists() {
            // A new segment is made durable with its header before it is used.
            let mut header = newer[..4096].to_vec();
            header.resize(newer.len(), 0);
            std::fs::write(&old, header).unwrap();
        }
        let safe = if durable <= base { 4096 } else { durable - base + 4096 };
        let older = std::fs::read(&old).unwrap();
        mix(&old, &[older, newer], safe, fate);
    }
}
